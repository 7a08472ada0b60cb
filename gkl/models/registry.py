"""Builds the network that a spec's architecture names."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gkl.catalog import ARCHITECTURES, DATASETS, image_shape, preprocessing_for, unknown_name_message
from gkl.catalog.zoo import ZOO
from gkl.errors import InvalidInput
from gkl.models.robustbench import dm_network, preact_resnet_18, resnet_18, wide_resnet, zoo_definition
from gkl.models.small_cnn import SmallCNN, TinyCNN

Builder = Callable[[int, tuple[int, int, int]], nn.Module]

_BUILDERS: dict[str, Builder] = {
    "tiny_cnn": TinyCNN,
    "small_cnn": SmallCNN,
    "resnet_18": resnet_18,
    "preact_resnet_18": preact_resnet_18,
    "preact_resnet_18_silu": dm_network("DMPreActResNet", 18, 0),
    "wrn_28_10_silu": dm_network("DMWideResNet", 28, 10),
    "wrn_34_10": wide_resnet(34, 10),
    "wrn_70_16_silu": dm_network("DMWideResNet", 70, 16),
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
