"""Networks with one parameter under several names train, average, save and resume as torch itself would have it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from gkl.errors import InvalidInput, Stopped
from gkl.formats.shared_memory import overlapping_parameters
from gkl.formats.tensor_files import load_tensors, save_tensors
from gkl.models import build_model, load_weights, registry
from gkl.recipes.adversarial import digits
from gkl.run_context import RunContext
from gkl.spec import EpochAveraging, Sgd, StepAveraging, TrainSpec
from gkl.training import train
from gkl.training.averaging import WeightAverage
from gkl.training.checkpoint import TrainingState, restore_newest, save_checkpoint
from gkl.training.optimizers import make_optimizer
from gkl.training.tasks import make_task
from gkl.training.weight_perturbation import WeightPerturber


class Tied(nn.Module):
    """Two layers with one weight, a scale under three names, and a normalization layer that comes twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.first.register_parameter("scale", self.scale)
        self.second.register_parameter("scale", self.scale)
        self.norm = nn.BatchNorm1d(64)
        self.again = self.norm
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x.flatten(1)) * self.scale).relu()
        return self.head(self.again(self.second(x) * self.scale).relu())


class InOneMemory(nn.Module):
    """Two parameters that overlap without being one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)
        self.head.weight = nn.Parameter(self.first.weight.data[:10])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x.flatten(1)).relu())


X, Y = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 10


@pytest.fixture
def model() -> Tied:
    torch.manual_seed(0)
    return Tied()


@pytest.fixture
def architecture(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(registry._BUILDERS, "tiny_cnn", lambda num_classes, image_shape: Tied())
    return "tiny_cnn"


@pytest.mark.parametrize("decay_batch_norm", [True, False])
def test_steps_are_those_of_torchs_sgd(model: Tied, decay_batch_norm: bool) -> None:
    other = copy.deepcopy(model)
    ours = make_optimizer(model, Sgd(decay_batch_norm=decay_batch_norm, nesterov=True))
    normalization = [*other.norm.parameters()]
    rest = [p for p in other.parameters() if all(p is not n for n in normalization)]
    theirs = torch.optim.SGD(
        [{"params": rest}, {"params": normalization, "weight_decay": 5e-4 if decay_batch_norm else 0.0}],
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        nesterov=True,
    )
    for _ in range(3):
        for network, optimizer in ((model, ours), (other, theirs)):
            optimizer.zero_grad()  # type: ignore[attr-defined]
            F.cross_entropy(network(X), Y).backward()
            optimizer.step()  # type: ignore[attr-defined]
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_shared_weight_is_perturbed_once(model: Tied) -> None:
    weights = {"first.weight": model.first.weight, "head.weight": model.head.weight}
    loss = F.cross_entropy(model(X), Y)
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), retain_graph=True), strict=True))
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with WeightPerturber(model, 0.01).perturbed(loss):
        for name, weight in weights.items():
            moved = (weight.detach() - before[name]).norm() / before[name].norm()
            assert float(moved) == pytest.approx(0.01, rel=1e-4), name
            step = before[name] + 0.01 * before[name].norm() * gradients[name] / gradients[name].norm()
            torch.testing.assert_close(weight.detach(), step)
    for name, weight in weights.items():
        torch.testing.assert_close(weight.detach(), before[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("spec", [EpochAveraging(tau=0.7), StepAveraging(kind="step", tau=0.7, warmup_fraction=0)])
@pytest.mark.parametrize("network", [Tied, InOneMemory])
def test_an_average_of_shared_memory_is_that_of_its_numbers(
    spec: EpochAveraging | StepAveraging, network: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    model = network()
    average = WeightAverage(model, spec, total_steps=100)
    expected = {name: t.double() for name, t in model.state_dict().items()}
    for number in range(1, 6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.after_step(model, number)
        average.after_epoch(model, number)
        epoch = isinstance(spec, EpochAveraging)
        decay = (0.7 if number > 1 else 0.0) if epoch else min(0.7, (1 + number) / (10 + number))
        for name, now in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * now.double()
    for name, tensor in average.model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_a_checkpoint_brings_all_back(model: Tied, tmp_path: Path) -> None:
    def state(network: nn.Module) -> TrainingState:
        optimizer, generator = make_optimizer(network, Sgd()), torch.Generator()
        return TrainingState(
            model=network,
            optimizer=optimizer,
            task=make_task(digits(), network, optimizer, generator),
            generator=generator,
            average=WeightAverage(network, EpochAveraging(), 10),
        )

    def step(of: TrainingState) -> None:
        of.optimizer.zero_grad()
        F.cross_entropy(of.model(X), Y).backward()
        of.optimizer.step()

    first = state(model)
    step(first)
    spec = digits()
    save_checkpoint(tmp_path, first, spec, keep=1)
    second = state(Tied())
    assert restore_newest(tmp_path, second, spec) == []
    step(first)
    step(second)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
    restored = second.model
    assert isinstance(restored, Tied)
    assert restored.first.weight is restored.second.weight


def test_a_training_of_one_equals_itself_after_a_stop_and_exports(architecture: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "architecture": architecture,
        "epochs": 2,
        "averaging": {"kind": "epoch"},
        "weight_perturbation": {"first_epoch": 1},
        "selection": {"num_images": 50, "num_steps": 1},
        "inner_maximization": {"num_steps": 1},
        "evaluation": None,
        "compute": {"channels_last": True},
        "batch_size": 512,
    }
    spec = TrainSpec.model_validate(digits().model_dump(mode="json") | changes)

    def run(directory: Path, stop_after: int | None = None) -> Path:
        asked = 0

        def should_stop() -> bool:
            nonlocal asked
            asked += 1
            return stop_after is not None and asked > stop_after

        outcome = train(
            spec, RunContext(directory=directory, datasets_dir=tmp_path, should_stop=should_stop, device="cpu")
        )
        return directory / outcome.weights

    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", stop_after=2)
    again = run(tmp_path / "stopped")
    assert whole.read_bytes() == again.read_bytes()
    # Plain torch, and the loader here, take the file as it is.
    model = Tied()
    model.load_state_dict(load_file(whole))
    assert torch.equal(model.first.weight, load_tensors(whole)[0]["second.weight"])
    load_weights(Tied(), whole)


def test_two_parameters_in_one_memory_are_saved_but_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = InOneMemory()
    save_tensors(tmp_path / "a.safetensors", model.state_dict(), {})
    for name, tensor in load_tensors(tmp_path / "a.safetensors")[0].items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert overlapping_parameters(model) == ("first.weight", "head.weight")
    assert overlapping_parameters(Tied()) is None
    monkeypatch.setitem(registry._BUILDERS, "tiny_cnn", lambda num_classes, image_shape: InOneMemory())
    spec = digits().model_copy(update={"architecture": "tiny_cnn"})
    with pytest.raises(InvalidInput, match=r"has two tensors in one memory, 'first\.weight' and 'head\.weight'"):
        train(spec, RunContext(directory=tmp_path / "run", datasets_dir=tmp_path, device="cpu"))


def test_views_of_every_kind_are_saved(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "base": base,
        "same": base,
        "transposed": base.t(),
        "slice": base[1:3],
        "column": base[:, 2],
        "expanded": base[0].expand(3, 6),
        "bits": base.view(torch.int32),
        "empty": base[:0],
        "empty too": base[:0],
        "scalar": base[2, 3],
    }
    save_tensors(tmp_path / "a.safetensors", tensors, {})
    for name, tensor in load_tensors(tmp_path / "a.safetensors")[0].items():
        assert torch.equal(tensor, tensors[name]), name


def test_the_zoo_has_such_a_network(tmp_path: Path) -> None:
    """One parameter under 13 names."""
    model = build_model("cifar10/Linf/Dai2021Parameterizing", "cifar10")
    assert len(model.state_dict()) > len(dict(model.named_parameters())) + len(dict(model.named_buffers()))
    assert overlapping_parameters(model) is None
