"""Builds the network that a spec's architecture names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from gkl.catalog import ARCHITECTURES, DATASETS, image_shape, preprocessing_for, unknown_name_message
from gkl.catalog.zoo import ZOO
from gkl.errors import InvalidInput
from gkl.models.cifar_resnet import CifarResNet, CifarResNet50
from gkl.models.cifar_vgg import CifarVgg
from gkl.models.cifar_wide_resnet import CifarWideResNet
from gkl.models.mobilenet import CifarMobileNetV2, MobileNetV1
from gkl.models.robustbench import dm_network, preact_resnet_18, resnet_18, wide_resnet, zoo_definition
from gkl.models.shufflenet import CifarShuffleNetV1, CifarShuffleNetV2
from gkl.models.small_cnn import SmallCNN, TinyCNN

Builder = Callable[[int, tuple[int, int, int]], nn.Module]

_WIDE = (32, 64, 128, 256)


def _imagenet_resnet(depth: int, **options: int) -> Builder:
    def build(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        # Imported here: torchvision takes seconds, and other networks do not need it.
        from gkl.models.imagenet_resnet import ImageNetResNet  # noqa: PLC0415

        return ImageNetResNet(num_classes, image_shape, depth=depth, **options)

    return build


_BUILDERS: dict[str, Builder] = {
    "tiny_cnn": TinyCNN,
    "small_cnn": SmallCNN,
    "resnet_18": resnet_18,
    "preact_resnet_18": preact_resnet_18,
    "preact_resnet_18_silu": dm_network("DMPreActResNet", 18, 0),
    "wrn_28_10_silu": dm_network("DMWideResNet", 28, 10),
    "wrn_34_10": wide_resnet(34, 10),
    "wrn_70_16_silu": dm_network("DMWideResNet", 70, 16),
    "resnet_8": partial(CifarResNet, depth=8),
    "resnet_20": partial(CifarResNet, depth=20),
    "resnet_32": partial(CifarResNet, depth=32),
    "resnet_56": partial(CifarResNet, depth=56),
    "resnet_110": partial(CifarResNet, depth=110),
    "resnet_8x4": partial(CifarResNet, depth=8, widths=_WIDE),
    "resnet_32x4": partial(CifarResNet, depth=32, widths=_WIDE),
    "resnet_50": CifarResNet50,
    "wrn_16_2": partial(CifarWideResNet, depth=16, width=2),
    "wrn_40_1": partial(CifarWideResNet, depth=40, width=1),
    "wrn_40_2": partial(CifarWideResNet, depth=40, width=2),
    "vgg_8": partial(CifarVgg, convolutions=1),
    "vgg_13": partial(CifarVgg, convolutions=2),
    "mobilenet_v2": CifarMobileNetV2,
    "shufflenet_v1": CifarShuffleNetV1,
    "shufflenet_v2": CifarShuffleNetV2,
    "mobilenet_v1": MobileNetV1,
    "imagenet_resnet_18": _imagenet_resnet(18),
    "imagenet_resnet_34": _imagenet_resnet(34),
    "imagenet_resnet_50": _imagenet_resnet(50),
    "imagenet_resnext_101_32x4d": _imagenet_resnet(101, groups=32, width_per_group=4),
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
