"""What a spec may name: the data sets and architectures this engine knows. Free of torch.

The API and the pages list these records; `gkl.data` and `gkl.models` hold the code behind each name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gkl.parameters import PARAMETERS
from gkl.preprocessing import DEFAULT_PREPROCESSING, PREPROCESSINGS, Preprocessing
from gkl.zoo import ZOO, ZOO_PREPROCESSING

Norm = Literal["Linf", "L2", "L1"]

LOSS_TITLES = {"trades": "TRADES", "dkl": "DKL", "ikl": "IKL", "gkl": "GKL"}
"""How a page names the objective of a training, by its name in a spec."""


class Dataset(BaseModel):
    """A data set with a fixed train/test split; images are float32 in [0, 1]."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="How a spec names it.")
    title: str = Field(description="How a page names it.")
    num_classes: int = Field(description="Number of classes C; labels are 0 .. C-1.")
    image_shape: tuple[int, int, int] = Field(
        description="(channels, height, width) of one image; for ImageNet of one to train on, and an architecture's "
        "preprocessing tells the size of those that its evaluation attacks."
    )
    num_train: int = Field(description="Images to train on.")
    num_test: int = Field(description="Images that an evaluation attacks, in a fixed order.")
    epsilon: dict[Norm, float] = Field(description="The perturbation budget of its main board, per norm.")
    source: str = Field(description="Where the data comes from.")
    class_names: tuple[str, ...] = Field(default=(), description="Its classes in words, where there are few.")

    def class_name(self, label: int) -> str:
        """In words where there are some, else the number."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else str(label)


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


DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in [
        Dataset(
            name="digits",
            title="Digits",
            num_classes=10,
            image_shape=(1, 8, 8),
            num_train=1437,
            num_test=360,
            epsilon={"Linf": 0.2, "L2": 0.8},
            source="scikit-learn's load_digits: 1,797 handwritten digits of the UCI repository.",
        ),
        Dataset(
            name="fashion_mnist",
            title="Fashion-MNIST",
            num_classes=10,
            image_shape=(1, 28, 28),
            num_train=60_000,
            num_test=10_000,
            epsilon={"Linf": 0.1, "L2": 1.5},
            source="Fashion-MNIST (arXiv 1708.07747), its idx files; Debian's dataset-fashion-mnist has them.",
            class_names=(
                *("T-shirt", "trouser", "pullover", "dress", "coat"),
                *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
            ),
        ),
        Dataset(
            name="cifar10",
            title="CIFAR-10",
            num_classes=10,
            image_shape=(3, 32, 32),
            num_train=50_000,
            num_test=10_000,
            epsilon={"Linf": 8 / 255, "L2": 0.5},
            source="CIFAR-10 (Krizhevsky, 2009), the archive of its Python version.",
            class_names=(
                *("airplane", "automobile", "bird", "cat", "deer"),
                *("dog", "frog", "horse", "ship", "truck"),
            ),
        ),
        Dataset(
            name="cifar100",
            title="CIFAR-100",
            num_classes=100,
            image_shape=(3, 32, 32),
            num_train=50_000,
            num_test=10_000,
            epsilon={"Linf": 8 / 255, "L2": 0.5},
            source="CIFAR-100 (Krizhevsky, 2009), the archive of its Python version, fine labels.",
        ),
        Dataset(
            name="imagenet",
            title="ImageNet",
            num_classes=1000,
            image_shape=(3, 224, 224),
            num_train=1_281_167,
            num_test=5_000,
            epsilon={"Linf": 4 / 255, "L2": 3.0},
            source="ImageNet (ILSVRC 2012) as folders; tested on RobustBench's 5,000 validation images.",
        ),
    ]
}

_CIFAR = ("cifar10", "cifar100")
_SMALL_IMAGES = ("digits", "fashion_mnist", *_CIFAR)

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
    """Of a network of the catalog, built for a data set; None if it is none of them.

    >>> num_parameters("wrn_34_10", "cifar10"), num_parameters("wrn_34_10", "digits")
    (46160474, None)
    """
    return PARAMETERS.get(architecture, {}).get(dataset)


# A PreActResNet-18 may be one of two networks, of 11.2 and 12.5 million parameters. Of some WideResNets the zoo has a
# definition with one more block, which no image passes: those are known by their model id alone.
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
    """The network of the catalog that papers call so; None where there is none, or more than one.

    >>> named_so("WideResNet-34-10", "cifar100"), named_so("PreActResNet-18", "cifar10")
    ('wrn_34_10', None)
    """
    return next(
        (called[title] for datasets, called in _CALLED.items() if dataset in datasets and title in called), None
    )


def preprocessing_for(dataset: str, architecture: str) -> Preprocessing | None:
    """How a data set's test images are prepared for an architecture; None where they all have one size."""
    if dataset != "imagenet":
        return None
    return ARCHITECTURES[architecture].preprocessing or DEFAULT_PREPROCESSING


def recorded_preprocessing(dataset: str, manifest: Mapping[str, Any]) -> Preprocessing | None:
    """How the images of an evaluation were prepared, by its manifest; None where they all have one size.

    Raises:
        KeyError: it names a preprocessing that is not known here.
    """
    if dataset != "imagenet":
        return None
    # Before manifests named it, every architecture got the same one.
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


CORRUPTIONS: tuple[str, ...] = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The common corruptions of arXiv 1903.12261, each in severities 1 to 5, named like their files."""

CORRUPTED_DATASETS: dict[str, str] = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C", "imagenet": "ImageNet-C"}
"""The data sets that exist in corrupted versions -> the folder of those."""


def unknown_name_message(what: str, name: str, known: Iterable[str]) -> str:
    """One sentence for a mistyped name, with the nearest known ones first."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"unknown {what} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    shown = [k for k in known if "/" not in k]
    more = f" and {len(known) - len(shown)} of the RobustBench zoo" if len(shown) < len(known) else ""
    return f"unknown {what} {name!r}; known: {', '.join(shown)}{more}."
