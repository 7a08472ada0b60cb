"""The data sets that a spec may name, and the common corruptions. `gkl.data` loads their files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Norm = Literal["Linf", "L2", "L1"]


class Dataset(BaseModel):
    """A data set with a fixed train/test split; images are float32 in [0, 1]."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="How a spec names it.")
    title: str = Field(description="How a page names it.")
    num_classes: int = Field(description="Number of classes C; labels are 0 .. C-1.")
    image_shape: tuple[int, int, int] = Field(
        description="(channels, height, width) of one image; for ImageNet of a training image: the size of its test "
        "images depends on the architecture's preprocessing."
    )
    num_train: int = Field(description="Images to train on.")
    num_test: int = Field(description="Images that an evaluation attacks, in a fixed order.")
    epsilon: dict[Norm, float] = Field(description="The perturbation budget of its main board, per norm.")
    source: str = Field(description="Where the data comes from.")
    class_names: tuple[str, ...] = Field(default=(), description="Names of its classes; empty if there are many.")

    @property
    def is_image_files(self) -> bool:
        """Whether its images are files that are decoded on demand, photographs of any size."""
        return self.name == "imagenet"

    def class_name(self, label: int) -> str:
        """Return the name of a class; its number if it has no name."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else str(label)


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
"""Name of a data set with corrupted versions -> title of these, which is also the name of their folder."""


def unknown_name_message(what: str, name: str, known: Iterable[str]) -> str:
    """Return an error message for an unknown name, with the most similar known names, or with all if none is similar.

    >>> unknown_name_message("dataset", "cifar-10", ["cifar10", "digits"])
    "unknown dataset 'cifar-10'; did you mean 'cifar10'?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"unknown {what} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    shown = [k for k in known if "/" not in k]
    more = f" and {len(known) - len(shown)} of the RobustBench zoo" if len(shown) < len(known) else ""
    return f"unknown {what} {name!r}; known: {', '.join(shown)}{more}."
