"""The networks of distillation: counts and names of the field's own definitions, and their input normalization."""

from __future__ import annotations

import pytest
import torch
import torchvision

from gkl.catalog import ARCHITECTURES
from gkl.models import build_model
from gkl.models.normalization import own_normalization

# Parameters and entries of the state dict for 100 classes of 32x32 images, as in megvii-research/mdistiller a08d46f.
COUNTS = {
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
# One name of each kind that published files have.
NAMES = {
    "resnet_8x4": ("layer2.0.downsample.1.running_var", "layer3.0.bn2.bias", "fc.weight"),
    "wrn_40_2": ("block1.layer.0.convShortcut.weight", "block3.layer.5.conv2.weight", "bn1.running_mean", "fc.bias"),
    "vgg_13": ("block0.3.bias", "block4.4.num_batches_tracked", "classifier.weight"),
    "resnet_50": ("layer4.0.shortcut.0.weight", "layer1.2.conv3.weight", "linear.bias"),
    "mobilenet_v2": ("conv1.0.weight", "blocks.0.0.conv.7.weight", "blocks.6.0.conv.3.weight", "classifier.0.bias"),
    "shufflenet_v1": ("layer1.0.conv3.weight", "layer3.3.bn1.weight", "linear.weight"),
    "shufflenet_v2": ("layer1.0.conv5.weight", "layer2.7.bn3.bias", "conv2.weight", "linear.weight"),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_entries_are_those_of_the_field(name: str) -> None:
    with torch.device("meta"):
        network = build_model(name, "cifar100")
    assert (sum(p.numel() for p in network.parameters()), len(network.state_dict())) == COUNTS[name]
    assert network.state_dict().keys() >= set(NAMES.get(name, ()))


@pytest.mark.parametrize("name", [name for name in COUNTS if name not in ("resnet_18", "resnet_110", "resnet_50")])
def test_a_network_classifies_the_images_of_each_of_its_data_sets(name: str) -> None:
    shapes = {"digits": (1, 8, 8), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}
    for dataset in ARCHITECTURES[name].datasets:
        network = build_model(dataset=dataset, architecture=name).eval()
        with torch.no_grad():
            logits = network(torch.rand(2, *shapes[dataset]))
        assert logits.shape == (2, 100 if dataset == "cifar100" else 10)
        assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "dataset", "mean"),
    [
        ("resnet_8", "cifar100", (0.5071, 0.4867, 0.4408)),
        ("wrn_16_2", "cifar10", (0.4914, 0.4822, 0.4465)),
        ("vgg_8", "cifar100", (0.5071, 0.4867, 0.4408)),
        ("shufflenet_v2", "cifar100", (0.5071, 0.4867, 0.4408)),
        ("resnet_8", "digits", (0.5,)),
        ("mobilenet_v1", "imagenet", (0.485, 0.456, 0.406)),
        ("imagenet_resnet_18", "imagenet", (0.485, 0.456, 0.406)),
    ],
)
def test_a_network_normalizes_its_input_itself(name: str, dataset: str, mean: tuple[float, ...]) -> None:
    network = build_model(name, dataset).eval()
    shape = (3, 224, 224) if dataset == "imagenet" else (len(mean), 8, 8) if dataset == "digits" else (3, 32, 32)
    found = own_normalization(network, shape)
    assert found is not None
    torch.testing.assert_close(found.mean.flatten(), torch.tensor(mean), rtol=1e-4, atol=1e-5)
    assert not {"input_mean", "input_std"} & network.state_dict().keys()


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_imagenet_resnets_are_torchvisions(depth: int) -> None:
    with torch.device("meta"):
        ours = build_model(f"imagenet_resnet_{depth}", "imagenet").state_dict()
        theirs = getattr(torchvision.models, f"resnet{depth}")().state_dict()
    assert [(name, tensor.shape) for name, tensor in ours.items()] == [(n, t.shape) for n, t in theirs.items()]


def test_resnext_is_the_one_of_imagenet_lt() -> None:
    with torch.device("meta"):
        network = build_model("imagenet_resnext_101_32x4d", "imagenet")
    assert sum(p.numel() for p in network.parameters()) == 44_177_704
