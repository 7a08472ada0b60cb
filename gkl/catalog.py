"""What a spec may name: the data sets and architectures this engine knows. Free of torch.

The API and the pages list these records; `gkl.data` and `gkl.models` hold the code behind each name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Norm = Literal["Linf", "L2"]


class Dataset(BaseModel):
    """A data set with a fixed train/test split; images are float32 in [0, 1]."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="How a spec names it.")
    title: str = Field(description="How a page names it.")
    num_classes: int = Field(description="Number of classes C; labels are 0 .. C-1.")
    image_shape: tuple[int, int, int] = Field(description="(channels, height, width) of one image.")
    num_train: int = Field(description="Images to train on.")
    num_test: int = Field(description="Images that an evaluation attacks, in a fixed order.")
    epsilon: dict[Norm, float] = Field(description="The perturbation budget of its main board, per norm.")
    source: str = Field(description="Where the data comes from.")


class Architecture(BaseModel):
    """A network that a spec may name; never user code."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="How a spec names it.")
    title: str = Field(description="How a page names it.")
    description: str = Field(description="What it is, in a sentence.")


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
        )
    ]
}

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in [
        Architecture(
            name="small_cnn",
            title="SmallCNN",
            description="Three 3x3 convolutions with ReLU and two linear layers; for small images.",
        )
    ]
}


def unknown_name_message(what: str, name: str, known: Iterable[str]) -> str:
    """One sentence for a mistyped name, with the nearest known ones first."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"unknown {what} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"unknown {what} {name!r}; known: {', '.join(known)}."
