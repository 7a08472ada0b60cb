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
    """A network that a spec may name. Its code is part of this project or of RobustBench, never a user's."""

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
_FROM_28_PIXELS = ("fashion_mnist", *_CIFAR)
_IMAGENET = ("imagenet",)

_NORMALIZES = "normalizes its input"
_CIFAR_RESNET = f"ResNet of distillation papers: three stages of 16, 32 and 64 channels; {_NORMALIZES}."
_CIFAR_RESNET_X4 = f"ResNet of distillation papers: three stages of 64, 128 and 256 channels; {_NORMALIZES}."
_CIFAR_WRN = f"Wide ResNet of distillation papers, with ReLU; {_NORMALIZES}."
_CIFAR_VGG = f"VGG of distillation papers, with BatchNorm and one linear layer; {_NORMALIZES}."
_CIFAR_SHUFFLENET = f"For small images: begins with a 1x1 convolution, without pooling; {_NORMALIZES}."
_TORCHVISION = f"torchvision's {{}}; {_NORMALIZES}."

# Name -> (title, description, data sets).
_DISTILLATION: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "resnet_8": ("ResNet-8", _CIFAR_RESNET, _SMALL_IMAGES),
    "resnet_20": ("ResNet-20", _CIFAR_RESNET, _SMALL_IMAGES),
    "resnet_32": ("ResNet-32", _CIFAR_RESNET, _FROM_28_PIXELS),
    "resnet_56": ("ResNet-56", _CIFAR_RESNET, _FROM_28_PIXELS),
    "resnet_110": ("ResNet-110", _CIFAR_RESNET, _FROM_28_PIXELS),
    "resnet_8x4": ("ResNet-8x4", _CIFAR_RESNET_X4, _FROM_28_PIXELS),
    "resnet_32x4": ("ResNet-32x4", _CIFAR_RESNET_X4, _FROM_28_PIXELS),
    "resnet_50": (
        "ResNet-50",
        f"Bottlenecks with up to 2048 channels after a 3x3 convolution, for small images; {_NORMALIZES}.",
        _FROM_28_PIXELS,
    ),
    "wrn_16_2": ("WRN-16-2", _CIFAR_WRN, _SMALL_IMAGES),
    "wrn_40_1": ("WRN-40-1", _CIFAR_WRN, _FROM_28_PIXELS),
    "wrn_40_2": ("WRN-40-2", _CIFAR_WRN, _FROM_28_PIXELS),
    "vgg_8": ("VGG-8", _CIFAR_VGG, _FROM_28_PIXELS),
    "vgg_13": ("VGG-13", _CIFAR_VGG, _FROM_28_PIXELS),
    "mobilenet_v2": (
        "MobileNetV2 (width 0.5)",
        f"Half as wide as the paper's, for small images; {_NORMALIZES}.",
        _FROM_28_PIXELS,
    ),
    "shufflenet_v1": ("ShuffleNetV1", _CIFAR_SHUFFLENET, _FROM_28_PIXELS),
    "shufflenet_v2": ("ShuffleNetV2", _CIFAR_SHUFFLENET, _FROM_28_PIXELS),
    "imagenet_resnet_18": ("ResNet-18", _TORCHVISION.format("ResNet-18"), _IMAGENET),
    "imagenet_resnet_34": ("ResNet-34", _TORCHVISION.format("ResNet-34"), _IMAGENET),
    "imagenet_resnet_50": ("ResNet-50", _TORCHVISION.format("ResNet-50"), _IMAGENET),
    "imagenet_resnext_101_32x4d": (
        "ResNeXt-101-32x4d",
        _TORCHVISION.format("ResNet class with 32 groups of 4 channels"),
        _IMAGENET,
    ),
    "mobilenet_v1": (
        "MobileNetV1",
        f"Depthwise separable convolutions, width 1, for 224x224 images; {_NORMALIZES}.",
        _IMAGENET,
    ),
}

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
            datasets=_FROM_28_PIXELS,
            parameters=PARAMETERS["preact_resnet_18_silu"],
        ),
        Architecture(
            name="wrn_28_10_silu",
            title="WRN-28-10 (SiLU)",
            description="RobustBench's DMWideResNet with SiLU; normalizes its input, pads 28x28 images to 32x32.",
            datasets=_FROM_28_PIXELS,
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
        *(
            Architecture(
                name=name, title=title, description=description, datasets=datasets, parameters=PARAMETERS[name]
            )
            for name, (title, description, datasets) in _DISTILLATION.items()
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
    """Return the number of parameters of a network built for a data set; None if the catalog lacks this combination.

    >>> num_parameters("wrn_34_10", "cifar10"), num_parameters("wrn_34_10", "digits")
    (46160474, None)
    """
    return PARAMETERS.get(architecture, {}).get(dataset)


# Data sets -> title in papers -> name in the catalog. Titles that do not identify one network are left out:
# PreActResNet-18 may be one of two networks (11.2 or 12.5 million parameters), and some WideResNets of the zoo have an
# extra block that no image passes through, so that only their model id identifies them.
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
    """Return the name of the catalog's network that papers call by this title; None if there is none, or several.

    >>> named_so("WideResNet-34-10", "cifar100"), named_so("PreActResNet-18", "cifar10")
    ('wrn_34_10', None)
    """
    return next(
        (called[title] for datasets, called in _CALLED.items() if dataset in datasets and title in called), None
    )


def preprocessing_for(dataset: str, architecture: str) -> Preprocessing | None:
    """Return how a data set's test images are resized and cropped for an architecture; None except for ImageNet."""
    if dataset != "imagenet":
        return None
    return ARCHITECTURES[architecture].preprocessing or DEFAULT_PREPROCESSING


def recorded_preprocessing(dataset: str, manifest: Mapping[str, Any]) -> Preprocessing | None:
    """Return how an evaluation's images were resized and cropped, from its manifest; None except for ImageNet.

    Raises:
        KeyError: the manifest names an unknown preprocessing.
    """
    if dataset != "imagenet":
        return None
    # Older manifests name none, since all architectures had the default preprocessing then.
    name = manifest.get("preprocessing")
    return DEFAULT_PREPROCESSING if name is None else PREPROCESSINGS[str(name)]


def image_shape(dataset: str, preprocessing: Preprocessing | None) -> tuple[int, int, int]:
    """Return (channels, height, width) of a data set's images after a preprocessing.

    >>> image_shape("imagenet", preprocessing_for("imagenet", "imagenet/Linf/Wong2020Fast"))
    (3, 288, 288)
    >>> image_shape("cifar10", None)
    (3, 32, 32)
    """
    described = DATASETS[dataset].image_shape
    return described if preprocessing is None else (described[0], *preprocessing.size)
