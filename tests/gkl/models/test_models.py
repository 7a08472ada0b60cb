"""The registry, and that what is trained here loads in RobustBench unchanged."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

from gkl.catalog import ARCHITECTURES, DATASETS, named_so, num_parameters
from gkl.catalog.zoo import NOT_OFFERED, ZOO
from gkl.errors import InvalidInput
from gkl.formats.tensor_files import load_tensors
from gkl.models import build_model, load_weights
from gkl.models.robustbench import _robustbench
from gkl.run_context import RunContext
from gkl.spec import InnerMaximization, ThreatModel, TrainSpec
from gkl.training import train
from tests.data_files import write_cifar10

OWN = [(a.name, dataset) for a in ARCHITECTURES.values() if "/" not in a.name for dataset in a.datasets]


@pytest.mark.parametrize(("architecture", "dataset"), OWN)
def test_a_network_gives_logits_for_its_data_sets(architecture: str, dataset: str) -> None:
    described = DATASETS[dataset]
    # Shapes alone, so that the large ones cost nothing.
    with torch.device("meta"):
        model = build_model(architecture, dataset)
        logits = model(torch.empty(2, *described.image_shape))
    assert logits.shape == (2, described.num_classes)
    assert _num_parameters(model) == num_parameters(architecture, dataset)


def _num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_name_from_a_paper_is_one_network() -> None:
    """By the published networks that RobustBench calls so, with other activations too: the same number."""
    same = {
        ("ResNet-18", "cifar10"): "cifar10/Linf/Sehwag2021Proxy_R18",
        ("WideResNet-28-10", "cifar10"): "cifar10/Linf/Standard",
        ("WideResNet-34-10", "cifar10"): "cifar10/Linf/Sehwag2021Proxy",
        ("WideResNet-34-10", "cifar100"): "cifar100/Linf/Wu2020Adversarial",
        ("WideResNet-70-16", "cifar100"): "cifar100/Linf/Gowal2020Uncovering",
        ("ResNet-50", "cifar10"): "cifar10/L2/Engstrom2019Robustness",
        ("ResNet-50", "imagenet"): "imagenet/Linf/Engstrom2019Robustness",
    }
    for (title, dataset), published in same.items():
        known = named_so(title, dataset)
        assert known is not None
        assert num_parameters(known, dataset) == num_parameters(published, dataset), (title, dataset)


def test_a_network_for_other_images_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'wrn_34_10' cannot be built for digits"):
        build_model("wrn_34_10", "digits")


def test_the_zoo_is_robustbenchs() -> None:
    definitions = {
        f"{dataset.value}/{threat_model.value}/{model}"
        for dataset, threat_models in _robustbench("model_zoo").model_dicts.items()
        for threat_model, models in threat_models.items()
        for model in models
    }
    assert ZOO.keys() | NOT_OFFERED.keys() == definitions
    assert not ZOO.keys() & NOT_OFFERED.keys()


@pytest.mark.parametrize(
    "name",
    [
        "cifar10/L2/Rice2020Overfitting",
        "cifar100/Linf/Debenedetti2022Light_XCiT-S12",
        "cifar10/corruptions/Modas2021PRIMEResNet18",
        "imagenet/corruptions/AlexNet",
    ],
)
def test_a_definition_of_the_zoo_gives_logits(name: str) -> None:
    """One of each way in which RobustBench makes a network: a class of its own, timm's registry, torchvision."""
    described = DATASETS[name.split("/", maxsplit=1)[0]]
    model = build_model(name, described.name).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert model(torch.rand(2, *described.image_shape)).shape == (2, described.num_classes)
    assert _num_parameters(model) == num_parameters(name, described.name)


def _built(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A network, without its weights where it can be built without them."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return build()
        except (RuntimeError, NotImplementedError):
            # It computes with tensors while it is built.
            return build()


def _tensors(model: torch.nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Names, shapes and formats of a network's state dict."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}


@pytest.mark.long
@pytest.mark.parametrize("name", ZOO)
def test_a_definition_of_the_zoo_has_robustbenchs_tensors_and_so_many_parameters(name: str) -> None:
    dataset, threat_model, model_id = ZOO[name]
    utils, enums = _robustbench("utils"), _robustbench("model_zoo.enums")

    def theirs() -> torch.nn.Module:
        """As `robustbench.utils.load_model` builds it."""
        timm = import_module("timm")
        timm_name = f"{model_id.lower().replace('-', '_')}_{dataset}_{threat_model.lower()}"
        if timm.is_model(timm_name):
            classes = utils.DATASET_CLASSES[enums.BenchmarkDataset(dataset)]
            built: torch.nn.Module = timm.create_model(timm_name, num_classes=classes)
        else:
            models = utils.all_models[enums.BenchmarkDataset(dataset)][enums.ThreatModel(threat_model)]
            built = models[model_id]["model"]()
        return built

    ours = _built(lambda: build_model(name, dataset))
    assert _tensors(ours) == _tensors(_built(theirs))
    assert _num_parameters(ours) == num_parameters(name, dataset)


def _robustbench_checkpoint(model_dir: Path, model_id: str, weights: Path) -> None:
    """Where `load_model` looks before it downloads."""
    path = model_dir / "cifar10" / "Linf" / f"{model_id}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(load_tensors(weights)[0], path)


@pytest.mark.parametrize(
    ("architecture", "model_id"),
    [("resnet_18", "Sehwag2021Proxy_R18"), ("preact_resnet_18_silu", "Rade2021Helper_R18_ddpm")],
)
def test_a_checkpoint_trained_here_loads_in_robustbench(architecture: str, model_id: str, tmp_path: Path) -> None:
    images, _ = write_cifar10(tmp_path, per_batch=4)
    spec = TrainSpec(
        name="One epoch",
        dataset="cifar10",
        architecture=architecture,
        threat_model=ThreatModel(epsilon="8/255"),  # type: ignore[arg-type]
        inner_maximization=InnerMaximization(num_steps=1),
        epochs=1,
        batch_size=20,
    )
    outcome = train(spec, RunContext(directory=tmp_path / "run", datasets_dir=tmp_path, device="cpu"))
    weights = tmp_path / "run" / outcome.weights
    _robustbench_checkpoint(tmp_path / "zoo", model_id, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = _robustbench("utils").load_model(model_id, model_dir=tmp_path / "zoo", threat_model="Linf")
    ours = build_model(architecture, "cifar10").eval()
    load_weights(ours, weights)
    x = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        # Not to the bit: RobustBench writes SiLU out.
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("architecture", "zoo_name"),
    [
        ("wrn_34_10", "cifar10/Linf/Cui2023Decoupled_WRN-34-10"),
        ("wrn_34_10", "cifar100/Linf/Cui2023Decoupled_WRN-34-10_autoaug"),
        ("wrn_28_10_silu", "cifar10/Linf/Cui2023Decoupled_WRN-28-10"),
        ("wrn_28_10_silu", "cifar100/Linf/Cui2023Decoupled_WRN-28-10"),
        ("preact_resnet_18", "cifar10/Linf/Andriushchenko2020Understanding"),
        ("wrn_70_16_silu", "cifar10/Linf/Wang2023Better_WRN-70-16"),
    ],
)
def test_an_architecture_is_the_one_of_the_published_model(architecture: str, zoo_name: str) -> None:
    """Equal names and shapes of all tensors: a published checkpoint of it loads here, and one from here there."""
    dataset = zoo_name.split("/", maxsplit=1)[0]
    with torch.device("meta"):
        ours, theirs = build_model(architecture, dataset), build_model(zoo_name, dataset)

    def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    assert shapes(ours) == shapes(theirs)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_input_normalization_is_the_published_models(dataset: str) -> None:
    """Not in the checkpoint: it must come with the architecture."""
    ours = build_model("wrn_28_10_silu", dataset)
    theirs = build_model(f"{dataset}/Linf/Cui2023Decoupled_WRN-28-10", dataset)
    for name, buffer in theirs.named_buffers():
        if name in ("mean", "std"):
            assert torch.equal(ours.get_buffer(name), buffer)
    assert {"mean", "std"} <= {name for name, _ in theirs.named_buffers()}
