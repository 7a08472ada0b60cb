"""Builds the network that a spec's architecture names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

from torch import nn

from gkl.catalog import ARCHITECTURES, DATASETS, image_shape, preprocessing_for, unknown_name_message
from gkl.catalog.zoo import ZOO
from gkl.errors import InvalidInput
from gkl.models.cifar_resnet import CifarResNet
from gkl.models.cifar_resnet_50 import CifarResNet50
from gkl.models.cifar_vgg import CifarVGG
from gkl.models.cifar_wide_resnet import CifarWideResNet
from gkl.models.mobilenet import MobileNetV1, MobileNetV2
from gkl.models.robustbench import dm_network, preact_resnet_18, resnet_18, wide_resnet, zoo_definition
from gkl.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from gkl.models.small_cnn import SmallCNN, TinyCNN

Builder = Callable[[int, tuple[int, int, int]], nn.Module]


def _torchvisions(name: str) -> Builder:
    """A function of `gkl.models.imagenet_resnet`, imported when it is called: importing torchvision takes a second."""

    def build(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        builder: Builder = getattr(import_module("gkl.models.imagenet_resnet"), name)
        return builder(num_classes, image_shape)

    return build


# Channels of the first convolution and of the three stages of a distillation ResNet, and of one named x4.
_WIDTHS, _WIDTHS_X4 = (16, 16, 32, 64), (32, 64, 128, 256)

_BUILDERS: dict[str, Builder] = {
    "tiny_cnn": TinyCNN,
    "small_cnn": SmallCNN,
    "resnet_18": resnet_18,
    "preact_resnet_18": preact_resnet_18,
    "preact_resnet_18_silu": dm_network("DMPreActResNet", 18, 0),
    "wrn_28_10_silu": dm_network("DMWideResNet", 28, 10),
    "wrn_34_10": wide_resnet(34, 10),
    "wrn_70_16_silu": dm_network("DMWideResNet", 70, 16),
    "resnet_8": partial(CifarResNet, 8, _WIDTHS),
    "resnet_20": partial(CifarResNet, 20, _WIDTHS),
    "resnet_32": partial(CifarResNet, 32, _WIDTHS),
    "resnet_56": partial(CifarResNet, 56, _WIDTHS),
    "resnet_110": partial(CifarResNet, 110, _WIDTHS),
    "resnet_8x4": partial(CifarResNet, 8, _WIDTHS_X4),
    "resnet_32x4": partial(CifarResNet, 32, _WIDTHS_X4),
    "resnet_50": CifarResNet50,
    "wrn_16_2": partial(CifarWideResNet, 16, 2),
    "wrn_40_1": partial(CifarWideResNet, 40, 1),
    "wrn_40_2": partial(CifarWideResNet, 40, 2),
    "vgg_8": partial(CifarVGG, 1),
    "vgg_13": partial(CifarVGG, 2),
    "mobilenet_v2": partial(MobileNetV2, 0.5),
    "shufflenet_v1": ShuffleNetV1,
    "shufflenet_v2": ShuffleNetV2,
    "imagenet_resnet_18": _torchvisions("imagenet_resnet_18"),
    "imagenet_resnet_34": _torchvisions("imagenet_resnet_34"),
    "imagenet_resnet_50": _torchvisions("imagenet_resnet_50"),
    "imagenet_resnext_101_32x4d": _torchvisions("imagenet_resnext_101_32x4d"),
    "mobilenet_v1": MobileNetV1,
    **{name: zoo_definition(name) for name in ZOO},
}

assert _BUILDERS.keys() == ARCHITECTURES.keys(), "the catalog and the code must name the same architectures"


def build_model(architecture: str, dataset: str) -> nn.Module:
    """Build a freshly initialized network for the images and classes of a data set, on the CPU, in train mode.

    Raises:
        InvalidInput: the name is not in the catalog, or the network cannot be built for this data set.
    """
    if architecture not in _BUILDERS:
        raise InvalidInput(unknown_name_message("architecture", architecture, _BUILDERS))
    if dataset not in ARCHITECTURES[architecture].datasets:
        raise InvalidInput(f"the architecture {architecture!r} cannot be built for {dataset}")
    shape = image_shape(dataset, preprocessing_for(dataset, architecture))
    return _BUILDERS[architecture](DATASETS[dataset].num_classes, shape)
