"""The networks of distillation papers: the tensors of their published checkpoints, and their input normalization."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from gkl.catalog import ARCHITECTURES, DATASETS
from gkl.catalog.network_tensors import architectures_that_fit
from gkl.errors import InvalidInput
from gkl.formats.weights_contents import safetensors_contents
from gkl.models import build_model, read_model
from gkl.models.normalization import Normalization, own_normalization
from gkl.models.shufflenet import shuffle

# Parameters and entries of the state dict at 100 classes, measured with mdistiller's own classes.
AT_100_CLASSES = {
    "resnet_8": (83_892, 56),
    "resnet_20": (278_324, 128),
    "resnet_32": (472_756, 200),
    "resnet_56": (861_620, 344),
    "resnet_110": (1_736_564, 668),
    "resnet_8x4": (1_233_540, 62),
    "resnet_32x4": (7_433_860, 206),
    "wrn_16_2": (703_284, 83),
    "wrn_40_1": (569_780, 226),
    "wrn_40_2": (2_255_156, 227),
    "vgg_8": (3_965_028, 37),
    "vgg_13": (9_462_180, 72),
    "resnet_18": (11_220_132, 122),
    "resnet_50": (23_705_252, 320),
    "mobilenet_v2": (812_836, 320),
    "shufflenet_v1": (949_258, 296),
    "shufflenet_v2": (1_355_528, 338),
}
CIFAR = [name for name in AT_100_CLASSES if name != "resnet_18"]
IMAGENET = ["imagenet_resnet_18", "imagenet_resnet_34", "imagenet_resnet_50", "imagenet_resnext_101_32x4d"]

# Names and shapes in mdistiller's checkpoints for CIFAR-100, the last ones of layers that only some networks have.
TENSORS: dict[str, dict[str, tuple[int, ...]]] = {
    "resnet_8": {"layer2.0.downsample.0.weight": (32, 16, 1, 1), "fc.weight": (100, 64)},
    "resnet_110": {"layer3.17.bn2.running_var": (64,), "layer1.0.conv1.weight": (16, 16, 3, 3)},
    "resnet_32x4": {"conv1.weight": (32, 3, 3, 3), "layer1.0.downsample.1.bias": (64,), "fc.weight": (100, 256)},
    "resnet_50": {"layer4.0.shortcut.0.weight": (2048, 1024, 1, 1), "layer3.5.conv3.weight": (1024, 256, 1, 1)},
    "wrn_40_2": {
        "block1.layer.0.convShortcut.weight": (32, 16, 1, 1),
        "block3.layer.5.conv2.weight": (128, 128, 3, 3),
        "bn1.weight": (128,),
        "fc.weight": (100, 128),
    },
    "vgg_13": {"block0.0.bias": (64,), "block4.3.weight": (512, 512, 3, 3), "classifier.weight": (100, 512)},
    "mobilenet_v2": {
        "conv1.0.weight": (16, 3, 3, 3),
        "blocks.0.0.conv.6.weight": (8, 16, 1, 1),
        "blocks.5.2.conv.3.weight": (480, 1, 3, 3),
        "conv2.1.running_mean": (1280,),
        "classifier.0.weight": (100, 1280),
    },
    "shufflenet_v1": {
        "layer1.0.conv1.weight": (54, 24, 1, 1),
        "layer2.0.conv1.weight": (60, 80, 1, 1),
        "layer3.3.conv3.weight": (960, 80, 1, 1),
        "linear.weight": (100, 960),
    },
    "shufflenet_v2": {
        "layer1.0.conv5.weight": (58, 58, 1, 1),
        "layer2.7.bn3.bias": (116,),
        "conv2.weight": (1024, 464, 1, 1),
        "linear.weight": (100, 1024),
    },
}


def on_meta(architecture: str, dataset: str = "cifar100") -> nn.Module:
    """Without numbers, so that large networks cost nothing."""
    with torch.device("meta"):
        return build_model(architecture, dataset)


@pytest.mark.parametrize("architecture", AT_100_CLASSES)
def test_parameters_and_entries_are_the_published_ones(architecture: str) -> None:
    model = on_meta(architecture)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (parameters, len(model.state_dict())) == AT_100_CLASSES[architecture]


@pytest.mark.parametrize("architecture", TENSORS)
def test_tensors_have_the_names_of_mdistiller(architecture: str) -> None:
    state = on_meta(architecture).state_dict()
    assert {name: tuple(state[name].shape) for name in TENSORS[architecture]} == TENSORS[architecture]


def test_a_shortcut_without_change_of_shape_has_no_tensors() -> None:
    assert not any("downsample" in name for name in on_meta("resnet_20").state_dict() if name.startswith("layer1."))
    assert "block1.layer.0.convShortcut.weight" not in on_meta("wrn_40_1").state_dict()


def feature_sizes(architecture: str, stages: str, image: int = 32) -> list[tuple[int, ...]]:
    """(channels, height, width) after each of the named modules."""
    sizes = []
    model = on_meta(architecture, {32: "cifar100", 28: "fashion_mnist", 8: "digits"}[image])
    for stage in stages.split():
        model.get_submodule(stage).register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    with torch.device("meta"):
        model(torch.empty(2, 3 if image == 32 else 1, image, image))
    return sizes


@pytest.mark.parametrize(
    ("architecture", "stages", "sizes"),
    [
        ("resnet_20", "layer1 layer2 layer3", [(16, 32, 32), (32, 16, 16), (64, 8, 8)]),
        ("resnet_50", "layer1 layer2 layer3 layer4", [(256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4)]),
        ("wrn_40_2", "block1 block2 block3", [(32, 32, 32), (64, 16, 16), (128, 8, 8)]),
        ("vgg_8", "block0 block1 block2 block3 block4", [(64, 32, 32), (128, 16, 16), (256, 8, 8), *2 * [(512, 4, 4)]]),
        (
            "mobilenet_v2",
            "conv1 blocks.0 blocks.1 blocks.2 blocks.3 blocks.4 blocks.5 blocks.6 conv2",
            [
                *((16, 16, 16), (8, 16, 16), (12, 16, 16), (16, 8, 8), (32, 4, 4)),
                *((48, 4, 4), (80, 2, 2), (160, 2, 2), (1280, 2, 2)),
            ],
        ),
        ("shufflenet_v1", "conv1 layer1 layer2 layer3", [(24, 32, 32), (240, 16, 16), (480, 8, 8), (960, 4, 4)]),
        ("shufflenet_v2", "layer1 layer2 layer3 conv2", [(116, 16, 16), (232, 8, 8), (464, 4, 4), (1024, 4, 4)]),
    ],
)
def test_stages_have_these_sizes(architecture: str, stages: str, sizes: list[tuple[int, ...]]) -> None:
    assert feature_sizes(architecture, stages) == sizes


def test_smaller_images_are_halved_with_rounding_up() -> None:
    assert feature_sizes("resnet_8", "layer1 layer2 layer3", 8) == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]
    assert feature_sizes("shufflenet_v1", "layer1 layer2 layer3", 28) == [(240, 14, 14), (480, 7, 7), (960, 4, 4)]


def test_shuffling_interleaves_groups() -> None:
    channels = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffle(channels, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert shuffle(channels, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(shuffle(channels, 1), channels)


def test_a_block_of_shufflenet_v2_keeps_half_of_its_channels() -> None:
    block = build_model("shufflenet_v2", "cifar10").get_submodule("layer2.3")
    x = torch.rand(2, 232, 4, 4)
    assert torch.equal(block(x)[:, ::2], x[:, :116])


def test_every_network_learns() -> None:
    """Every parameter has a gradient."""
    for architecture in CIFAR:
        # The deep ones differ from these in the number of blocks only.
        if architecture in ("resnet_32", "resnet_56", "resnet_110", "resnet_32x4", "wrn_40_1"):
            continue
        model = build_model(architecture, "cifar10")
        model(torch.rand(4, 3, 32, 32)).square().sum().backward()
        without = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()]
        # BatchNorm takes away what a bias before it adds.
        assert [name for name in without if not architecture.startswith("vgg")] == [], architecture
        assert all(each.grad is None or each.grad.isfinite().all() for each in model.parameters())


# --- ImageNet ----------------------------------------------------------------------------------------------------


def _shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in model.state_dict().items()]


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_imagenet_resnets_are_torchvisions(depth: int) -> None:
    published: Callable[[], nn.Module] = getattr(torchvision.models, f"resnet{depth}")
    with torch.device("meta"):
        theirs = published()
    assert _shapes(on_meta(f"imagenet_resnet_{depth}", "imagenet")) == _shapes(theirs)


def test_an_imagenet_resnet_answers_as_torchvisions_does_for_normalized_images() -> None:
    theirs = torchvision.models.resnet18().eval()
    ours = build_model("imagenet_resnet_18", "imagenet").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 64, 64)
    normalize = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(normalize(x)))


def test_the_resnext_has_32_groups_of_4_channels() -> None:
    model = on_meta("imagenet_resnext_101_32x4d", "imagenet")
    assert sum(parameter.numel() for parameter in model.parameters()) == 44_177_704
    state = model.state_dict()
    assert state["layer1.0.conv2.weight"].shape == (128, 4, 3, 3)
    assert state["layer3.22.conv2.weight"].shape == (512, 16, 3, 3)


def test_mobilenet_v1_has_the_published_parameters_and_names() -> None:
    model = on_meta("mobilenet_v1", "imagenet")
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_231_976
    state = model.state_dict()
    assert state["model.0.0.weight"].shape == (32, 3, 3, 3)
    assert state["model.13.0.weight"].shape == (1024, 1, 3, 3)
    assert state["model.13.3.weight"].shape == (1024, 1024, 1, 1)
    assert state["fc.weight"].shape == (1000, 1024)


# --- input normalization -----------------------------------------------------------------------------------------

STATISTICS = {
    "digits": ([0.5], [0.5]),
    "fashion_mnist": ([0.5], [0.5]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "cifar100": ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
OF_DATASETS = [
    (name, dataset) for name in [*CIFAR, *IMAGENET, "mobilenet_v1"] for dataset in ARCHITECTURES[name].datasets
]


def normalization_of(dataset: str, change: float = 0.0) -> Normalization:
    mean, std = map(torch.tensor, STATISTICS[dataset])
    return Normalization(mean + change, std)


@pytest.mark.parametrize(("architecture", "dataset"), OF_DATASETS)
def test_the_normalization_is_found(architecture: str, dataset: str) -> None:
    found = own_normalization(build_model(architecture, dataset), DATASETS[dataset].image_shape)
    assert found is not None
    assert found.equals(normalization_of(dataset))


@pytest.mark.parametrize("front", ["none", "the same", "another"])
@pytest.mark.parametrize("architecture", ["resnet_8", "wrn_16_2", "vgg_8", "mobilenet_v2", "shufflenet_v2"])
def test_a_file_may_have_the_same_normalization_in_front(tmp_path: Path, architecture: str, front: str) -> None:
    """In the layouts of mdistiller's training (DataParallel) and of `nn.Sequential(normalization, network)`."""
    torch.manual_seed(0)
    network = build_model(architecture, "cifar100").eval()
    before = normalization_of("cifar100", 0.1 if front == "another" else 0.0)
    saved = {"none": nn.DataParallel(network), "the same": nn.Sequential(before, network)}
    state = saved.get(front, nn.Sequential(before, network)).state_dict()
    torch.save({"epoch": 240, "model": state}, tmp_path / "weights.pt")
    if front == "another":
        with pytest.raises(InvalidInput, match="normalizes its images with other numbers"):
            read_model(architecture, "cifar100", tmp_path / "weights.pt", None)
        return
    loaded = read_model(architecture, "cifar100", tmp_path / "weights.pt", None)
    assert any("already part of the architecture" in note for note in loaded.notes) == (front == "the same")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.network.eval()(x), network(x))


def test_a_file_of_weights_fits_no_other_distillation_network(tmp_path: Path) -> None:
    for architecture in CIFAR:
        state = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in _state(architecture)}
        save_file(state, tmp_path / "weights.safetensors")
        fitting = architectures_that_fit(safetensors_contents(tmp_path / "weights.safetensors"), "cifar100", None)
        assert [name for name in fitting if "/" not in name] == [architecture]


def _state(architecture: str) -> list[tuple[str, torch.Tensor]]:
    return [*on_meta(architecture).state_dict().items()]
