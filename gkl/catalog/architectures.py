"""The networks that a spec may name. `gkl.models` builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gkl.catalog.datasets import DATASETS
from gkl.catalog.parameters import PARAMETERS
from gkl.catalog.preprocessing import DEFAULT_PREPROCESSING, PREPROCESSINGS, Preprocessing
from gkl.catalog.zoo import ZOO, ZOO_PREPROCESSING

LOSS_TITLES = {"trades": "TRADES", "dkl": "DKL", "ikl": "IKL", "gkl": "GKL", "ce": "CE"} | {
    **{"kd": "KD", "dkd": "DKD", "ard": "ARD", "iad": "IAD-I"},
    **{"rslad": "RSLAD", "adaad": "AdaAD", "rslad-gkl": "RSLAD with GKL"},
}
"""A training objective's name in a spec -> its name on pages."""


class Architecture(BaseModel):
    """A network that a spec may name; never user code."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="How a spec names it.")
    title: str = Field(description="How a page names it.")
    description: str = Field(description="What it is, in a sentence.")
    datasets: tuple[str, ...] = Field(description="The data sets whose images and classes it can be built for.")
    parameters: dict[str, int] = Field(
        description="How many parameters it has, for the images and classes of each of those data sets."
    )
    preprocessing: Preprocessing | None = Field(
        default=None,
        description="How ImageNet's test images are resized and cropped for it, as it was published; null for data "
        "sets whose images all have one size.",
    )


_CIFAR = ("cifar10", "cifar100")
_SMALL_IMAGES = ("digits", "fashion_mnist", *_CIFAR)
_IMAGENET = ("imagenet",)

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in [
        Architecture(
            name="tiny_cnn",
            title="TinyCNN",
            description="Two strided 3x3 convolutions with BatchNorm and two linear layers; for quick experiments.",
            datasets=_SMALL_IMAGES,
            parameters=PARAMETERS["tiny_cnn"],
        ),
        Architecture(
            name="small_cnn",
            title="SmallCNN",
            description="Three 3x3 convolutions with ReLU and two linear layers; for small images.",
            datasets=_SMALL_IMAGES,
            parameters=PARAMETERS["small_cnn"],
        ),
        Architecture(
            name="resnet_18",
            title="ResNet-18",
            description="RobustBench's ResNet18 for 32x32 images, without input normalization.",
            datasets=_CIFAR,
            parameters=PARAMETERS["resnet_18"],
        ),
        Architecture(
            name="preact_resnet_18",
            title="PreActResNet-18",
            description="RobustBench's PreActResNet18 for 32x32 images, without input normalization.",
            datasets=_CIFAR,
            parameters=PARAMETERS["preact_resnet_18"],
        ),
        Architecture(
            name="preact_resnet_18_silu",
            title="PreActResNet-18 (SiLU)",
            description="RobustBench's DMPreActResNet with SiLU; normalizes its input, pads 28x28 images to 32x32.",
            datasets=("fashion_mnist", *_CIFAR),
            parameters=PARAMETERS["preact_resnet_18_silu"],
        ),
        Architecture(
            name="wrn_28_10_silu",
            title="WRN-28-10 (SiLU)",
            description="RobustBench's DMWideResNet with SiLU; normalizes its input, pads 28x28 images to 32x32.",
            datasets=("fashion_mnist", *_CIFAR),
            parameters=PARAMETERS["wrn_28_10_silu"],
        ),
        Architecture(
            name="wrn_34_10",
            title="WRN-34-10",
            description="RobustBench's WideResNet with ReLU for 32x32 images, without input normalization.",
            datasets=_CIFAR,
            parameters=PARAMETERS["wrn_34_10"],
        ),
        Architecture(
            name="wrn_70_16_silu",
            title="WRN-70-16 (SiLU)",
            description="RobustBench's DMWideResNet with SiLU; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["wrn_70_16_silu"],
        ),
        Architecture(
            name="resnet_8",
            title="ResNet-8",
            description="Three stages of one basic block each, 16 to 64 channels; normalizes its input.",
            datasets=_SMALL_IMAGES,
            parameters=PARAMETERS["resnet_8"],
        ),
        Architecture(
            name="resnet_20",
            title="ResNet-20",
            description="Three stages of three basic blocks each, 16 to 64 channels; normalizes its input.",
            datasets=_SMALL_IMAGES,
            parameters=PARAMETERS["resnet_20"],
        ),
        Architecture(
            name="resnet_32",
            title="ResNet-32",
            description="Three stages of five basic blocks each, 16 to 64 channels; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["resnet_32"],
        ),
        Architecture(
            name="resnet_56",
            title="ResNet-56",
            description="Three stages of nine basic blocks each, 16 to 64 channels; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["resnet_56"],
        ),
        Architecture(
            name="resnet_110",
            title="ResNet-110",
            description="Three stages of 18 basic blocks each, 16 to 64 channels; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["resnet_110"],
        ),
        Architecture(
            name="resnet_8x4",
            title="ResNet-8x4",
            description="ResNet-8 with 64 to 256 channels; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["resnet_8x4"],
        ),
        Architecture(
            name="resnet_32x4",
            title="ResNet-32x4",
            description="ResNet-32 with 64 to 256 channels; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["resnet_32x4"],
        ),
        Architecture(
            name="resnet_50",
            title="ResNet-50",
            description="ResNet-50 for 32x32 images, with a 3x3 first convolution; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["resnet_50"],
        ),
        Architecture(
            name="wrn_16_2",
            title="WRN-16-2",
            description="A wide ResNet of 16 layers with 32 to 128 channels; normalizes its input.",
            datasets=_SMALL_IMAGES,
            parameters=PARAMETERS["wrn_16_2"],
        ),
        Architecture(
            name="wrn_40_1",
            title="WRN-40-1",
            description="A wide ResNet of 40 layers with 16 to 64 channels; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["wrn_40_1"],
        ),
        Architecture(
            name="wrn_40_2",
            title="WRN-40-2",
            description="A wide ResNet of 40 layers with 32 to 128 channels; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["wrn_40_2"],
        ),
        Architecture(
            name="vgg_8",
            title="VGG-8",
            description="VGG with BatchNorm and one 3x3 convolution in each of five stages; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["vgg_8"],
        ),
        Architecture(
            name="vgg_13",
            title="VGG-13",
            description="VGG with BatchNorm and two 3x3 convolutions in each of five stages; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["vgg_13"],
        ),
        Architecture(
            name="mobilenet_v2",
            title="MobileNetV2 (width 0.5)",
            description="MobileNetV2 for 32x32 images at half its width; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["mobilenet_v2"],
        ),
        Architecture(
            name="shufflenet_v1",
            title="ShuffleNetV1",
            description="ShuffleNetV1 for 32x32 images with three groups; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["shufflenet_v1"],
        ),
        Architecture(
            name="shufflenet_v2",
            title="ShuffleNetV2",
            description="ShuffleNetV2 for 32x32 images; normalizes its input.",
            datasets=_CIFAR,
            parameters=PARAMETERS["shufflenet_v2"],
        ),
        Architecture(
            name="mobilenet_v1",
            title="MobileNetV1",
            description="MobileNetV1 for 224x224 images; normalizes its input.",
            datasets=_IMAGENET,
            parameters=PARAMETERS["mobilenet_v1"],
        ),
        Architecture(
            name="imagenet_resnet_18",
            title="ResNet-18",
            description="torchvision's ResNet-18; normalizes its input.",
            datasets=_IMAGENET,
            parameters=PARAMETERS["imagenet_resnet_18"],
        ),
        Architecture(
            name="imagenet_resnet_34",
            title="ResNet-34",
            description="torchvision's ResNet-34; normalizes its input.",
            datasets=_IMAGENET,
            parameters=PARAMETERS["imagenet_resnet_34"],
        ),
        Architecture(
            name="imagenet_resnet_50",
            title="ResNet-50",
            description="torchvision's ResNet-50; normalizes its input.",
            datasets=_IMAGENET,
            parameters=PARAMETERS["imagenet_resnet_50"],
        ),
        Architecture(
            name="imagenet_resnext_101_32x4d",
            title="ResNeXt-101 (32x4d)",
            description="torchvision's ResNet with ResNeXt-101's 32 groups of width 4; normalizes its input.",
            datasets=_IMAGENET,
            parameters=PARAMETERS["imagenet_resnext_101_32x4d"],
        ),
        *(
            Architecture(
                name=name,
                title=model,
                description=f"RobustBench's definition of {model} for {DATASETS[dataset].title}, {threat_model}.",
                datasets=(dataset,),
                parameters=PARAMETERS[name],
                preprocessing=PREPROCESSINGS[ZOO_PREPROCESSING[name]] if name in ZOO_PREPROCESSING else None,
            )
            for name, (dataset, threat_model, model) in ZOO.items()
        ),
    ]
}


def num_parameters(architecture: str, dataset: str) -> int | None:
    """The number of parameters of a catalog network built for a data set; None if it is not in the catalog.

    >>> num_parameters("wrn_34_10", "cifar10"), num_parameters("wrn_34_10", "digits")
    (46160474, None)
    """
    return PARAMETERS.get(architecture, {}).get(dataset)


# Left out: PreActResNet-18, which may be one of two networks (11.2 or 12.5 million parameters), and the zoo's
# WideResNet definitions with an extra block that no image passes, which only their model id identifies.
_CALLED: dict[tuple[str, ...], dict[str, str]] = {
    _CIFAR: {
        "ResNet-18": "resnet_18",
        "WideResNet-28-10": "wrn_28_10_silu",
        "WideResNet-34-10": "wrn_34_10",
        "WideResNet-70-16": "wrn_70_16_silu",
    },
    ("cifar10",): {"ResNet-50": "cifar10/Linf/Engstrom2019Robustness"},
    ("imagenet",): {
        "ResNet-18": "imagenet/Linf/Salman2020Do_R18",
        "ResNet-50": "imagenet/Linf/Salman2020Do_R50",
        "WideResNet-50-2": "imagenet/Linf/Salman2020Do_50_2",
    },
}


def named_so(title: str, dataset: str) -> str | None:
    """The catalog's network that papers call by this title; None if there is none, or more than one.

    >>> named_so("WideResNet-34-10", "cifar100"), named_so("PreActResNet-18", "cifar10")
    ('wrn_34_10', None)
    """
    return next(
        (called[title] for datasets, called in _CALLED.items() if dataset in datasets and title in called), None
    )


def preprocessing_for(dataset: str, architecture: str) -> Preprocessing | None:
    """How a data set's test images are prepared for an architecture; None for data sets whose images have one size."""
    if dataset != "imagenet":
        return None
    return ARCHITECTURES[architecture].preprocessing or DEFAULT_PREPROCESSING


def recorded_preprocessing(dataset: str, manifest: Mapping[str, Any]) -> Preprocessing | None:
    """How an evaluation's images were prepared, by its manifest; None for data sets whose images have one size.

    Raises:
        KeyError: the manifest names an unknown preprocessing.
    """
    if dataset != "imagenet":
        return None
    # Older manifests name none: then every architecture had the default one.
    name = manifest.get("preprocessing")
    return DEFAULT_PREPROCESSING if name is None else PREPROCESSINGS[str(name)]


def image_shape(dataset: str, preprocessing: Preprocessing | None) -> tuple[int, int, int]:
    """(channels, height, width) of a data set's images after a preprocessing.

    >>> image_shape("imagenet", preprocessing_for("imagenet", "imagenet/Linf/Wong2020Fast"))
    (3, 288, 288)
    >>> image_shape("cifar10", None)
    (3, 32, 32)
    """
    described = DATASETS[dataset].image_shape
    return described if preprocessing is None else (described[0], *preprocessing.size)
