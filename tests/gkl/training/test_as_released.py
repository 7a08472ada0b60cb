"""Steps as the released code does them, in float64, against the same steps written out from their definitions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkl.files import sha256_of
from gkl.formats.tensor_files import save_tensors
from gkl.models import build_model
from gkl.recipes import RECIPES, recipe
from gkl.recipes.adversarial import digits
from gkl.run_context import RunContext
from gkl.spec import BatchNormStatistics, DistillSpec, TrainSpec
from gkl.training import train
from gkl.training.averaging import WeightAverage
from gkl.training.batch_norm import set_momentum
from gkl.training.optimizers import make_optimizer, set_rates
from gkl.training.schedule import learning_rate, momentum
from gkl.training.tasks import AdversarialTask
from tests.data_files import write_cifar10, write_npz

EPSILON = 0.0005
STEPS = 3


def spec(**changes: Any) -> TrainSpec:
    inner = {"num_steps": 3, "relative_step_size": 0.5} | changes.pop("inner_maximization", {})
    base = digits().model_dump(mode="json") | {"architecture": "tiny_cnn", "epochs": STEPS, "inner_maximization": inner}
    return TrainSpec.model_validate(base | changes)


def data() -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(STEPS, 24, 1, 8, 8, generator=generator, dtype=torch.float64)
    return list(x), torch.randint(0, 10, (24,), generator=generator)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("tiny_cnn", "digits").double()


def ours(spec: TrainSpec, model: nn.Module) -> nn.Module | None:
    """Steps of one batch an epoch, as the trainer makes them; returns the average."""
    batches, y = data()
    optimizer = make_optimizer(model, spec.optimizer)
    task = AdversarialTask(spec, model, optimizer, torch.Generator().manual_seed(1))
    task.objective.prior.rows = task.objective.prior.rows.double()
    average = None if spec.averaging is None else WeightAverage(model, spec.averaging, STEPS)
    for number, x in enumerate(batches):
        set_rates(optimizer, learning_rate=learning_rate(spec, number, 1), momentum=momentum(spec, number, 1))
        if spec.batch_norm is not None:
            set_momentum(model, spec.batch_norm, number)
        task.step((x,), y, epsilon=EPSILON)
        if average is not None:
            average.after_step(model, number + 1)
    return None if average is None else average.model


def drawn(x: Tensor, generator: torch.Generator, draw: Callable[..., Tensor]) -> Tensor:
    # Ours first draws a seed for networks that are random themselves.
    torch.randint(0, 2**62, (), generator=generator)
    return draw(x.shape, generator=generator)


def kl(natural: Tensor, adversarial: Tensor) -> Tensor:
    p = natural.softmax(1)
    return (p * (natural.log_softmax(1) - adversarial.log_softmax(1))).sum(1).mean()


def assert_same(mine: nn.Module, theirs: nn.Module) -> None:
    for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def ascended(model: nn.Module, x: Tensor, x_adv: Tensor, natural: Tensor) -> Tensor:
    for _ in range(3):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(kl(natural, model(x_adv)), x_adv)
        x_adv = x_adv.detach() + 0.5 * EPSILON * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPSILON), x + EPSILON).clamp(0, 1)
    return x_adv.detach()


@pytest.mark.parametrize("projects", [False, True])
def test_trades_from_a_start_that_is_not_projected(projects: bool) -> None:
    """As in the scripts of TRADES, DKL and GKL; the noise of 0.001 is twice this epoch's epsilon."""
    objective = {"loss": "trades", "kl_weight": 9.0}
    s = spec(objective=objective, inner_maximization={"project_start": projects}, schedule={"kind": "cosine"})
    mine, theirs = network(), network()
    ours(s, mine)
    batches, y = data()
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for number, x in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * number / STEPS))
        theirs.eval()
        start = x + 0.001 * drawn(x, generator, torch.randn)
        if projects:
            start = start.clamp(x - EPSILON, x + EPSILON).clamp(0, 1)
        x_adv = ascended(theirs, x, start, theirs(x).detach())
        theirs.train()
        adversarial, natural = theirs(x_adv), theirs(x)
        optimizer.zero_grad()
        (F.cross_entropy(natural, y) + 9 * kl(natural, adversarial)).backward()
        optimizer.step()
    assert_same(mine, theirs)


def test_steps_of_the_training_with_generated_images() -> None:
    """BatchNorm, averaging and one cycle of arXiv 2302.04638, with its KL instead of a loss of ours."""
    s = spec(
        objective={"loss": "trades", "kl_weight": 5.0},
        inner_maximization={"start_noise": "uniform", "network_mode": "train"},
        optimizer={"learning_rate": 0.2, "nesterov": True, "decay_batch_norm": False},
        schedule={
            "kind": "one_cycle",
            "warmup_fraction": 0.5,
            "moves": "per_epoch",
            "low_momentum": 0.85,
            "high_momentum": 0.95,
        },
        averaging={"kind": "step", "tau": 0.995, "warmup_fraction": 0.0, "buffers": "copied"},
        batch_norm={"momentum": 0.01, "first_momentum": 1.0},
    )
    mine, theirs = network(), network()
    my_average = ours(s, mine)
    average = copy.deepcopy(theirs)
    normalizations = [m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)]
    spared = [p for m in normalizations for p in m.parameters()]
    decayed = [p for p in theirs.parameters() if all(p is not other for other in spared)]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9, nesterov=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, pct_start=0.5, total_steps=STEPS)
    batches, y = data()
    generator = torch.Generator().manual_seed(1)
    for number, x in enumerate(batches):
        theirs.train()
        # A network of the same weights does the attack, so that its passes cannot be recorded in this one.
        attacked = copy.deepcopy(theirs)
        start = (x + EPSILON * (2 * drawn(x, generator, torch.rand) - 1)).clamp(0, 1)
        x_adv = ascended(attacked, x, start, attacked(x).detach())
        for module in normalizations:
            module.momentum = 1.0 if number == 0 else 0.01
        adversarial, natural = theirs(x_adv), theirs(x)
        optimizer.zero_grad()
        (F.cross_entropy(natural, y) + 5 * kl(natural, adversarial)).backward()
        optimizer.step()
        cycle.step()
        decay = min(0.995, (2 + number) / (11 + number))
        for p, now in zip(average.parameters(), theirs.parameters(), strict=True):
            p.data = decay * p.data + (1 - decay) * now.data
        for b, now in zip(average.buffers(), theirs.buffers(), strict=True):
            b.copy_(now)
    assert_same(mine, theirs)
    assert my_average is not None
    assert_same(my_average, average)
    assert all(m.momentum == 0.01 for m in mine.modules() if isinstance(m, nn.BatchNorm2d))


def test_an_attack_in_train_mode_moves_no_statistic() -> None:
    """With a learning rate of next to nothing: two recorded passes a step, whatever the attack did."""
    s = spec(inner_maximization={"network_mode": "train"}, optimizer={"learning_rate": 1e-15, "momentum": 0.0})
    mine, expected = network(), network().train()
    ours(s, mine)
    batches, _ = data()
    counts = [t for name, t in mine.state_dict().items() if name.endswith("num_batches_tracked")]
    assert [int(count) for count in counts] == [2 * STEPS, 2 * STEPS]
    # The perturbation is tiny: both passes of a step have the statistics of its natural images.
    for x in batches:
        expected(x)
        expected(x)
    for name, buffer in mine.named_buffers():
        torch.testing.assert_close(buffer, dict(expected.named_buffers())[name], rtol=2e-3, atol=2e-4)


def test_a_first_momentum_of_one_starts_from_the_first_batch() -> None:
    batch_norm = BatchNormStatistics(momentum=0.25, first_momentum=1.0)
    model = nn.Sequential(nn.BatchNorm1d(1, dtype=torch.float64)).train()
    for step, values in enumerate(([2.0, 6.0], [0.0, 10.0])):
        set_momentum(model, batch_norm, step)
        model(torch.tensor(values, dtype=torch.float64)[:, None])
    state = model.state_dict()
    # Means 4 and 5; unbiased variances 8 and 50.
    assert state["0.running_mean"].item() == pytest.approx(0.75 * 4 + 0.25 * 5)
    assert state["0.running_var"].item() == pytest.approx(0.75 * 8 + 0.25 * 50)


def untrained(file: Path) -> Path:
    """The weights of a network for CIFAR-10."""
    torch.manual_seed(7)
    save_tensors(file, build_model("tiny_cnn", "cifar10").state_dict(), {"architecture": "tiny_cnn"})
    return file


@pytest.mark.parametrize("name", sorted(name for name, make in RECIPES.items() if make().dataset.startswith("cifar")))
def test_every_recipe_runs_small(name: str, tmp_path: Path) -> None:
    """Two epochs of two steps each on 40 images; the recipe is otherwise as it is, also for CIFAR-100."""
    write_cifar10(tmp_path, per_batch=8)
    full = recipe(name).model_dump(mode="json")
    small: dict[str, Any] = {"dataset": "cifar10", "architecture": "tiny_cnn", "epochs": 2, "batch_size": 20}
    small["schedule"] = {"kind": "cosine"} if full["schedule"]["kind"] == "piecewise" else full["schedule"]
    if full["threat_model"] is not None:
        small["inner_maximization"] = full["inner_maximization"] | {"num_steps": 1}
    teacher = None
    if full["kind"] == "distill":
        teacher = untrained(tmp_path / "teacher.safetensors")
        small["teacher"] = {"architecture": "tiny_cnn", "weights": sha256_of(teacher)}
    if full["objective"]["loss"] == "iad":
        small["objective"] = full["objective"] | {"first_introspective_epoch": 2}
    small["evaluation"] = None
    if full["weight_perturbation"] is not None:
        small["weight_perturbation"] = full["weight_perturbation"] | {"first_epoch": 2}
    if full["synthetic"] is not None:
        write_npz(tmp_path / "cifar10" / "synthetic" / f"{full['synthetic']['file']}.npz", 30)
        small["selection"] = full["selection"] | {"num_images": 10, "num_steps": 2}
    outcome = train(
        (DistillSpec if full["kind"] == "distill" else TrainSpec).model_validate(full | small),
        RunContext(directory=tmp_path / "run", datasets_dir=tmp_path, device="cpu"),
        teacher=teacher,
    )
    assert outcome.epochs == 2
