"""From a data set's name to its images and labels as tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gkl.catalog import DATASETS
from gkl.data.digits import digits_split


@dataclass(frozen=True)
class ImageSet:
    """Images (N, channels, height, width) float32 in [0, 1] and labels (N,) int64, on the CPU."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, num_points: int | None) -> ImageSet:
        return self if num_points is None else ImageSet(self.images[:num_points], self.labels[:num_points])

    def sha256(self) -> str:
        """Over shape, pixels and labels, so that two runs can be known to have used the same data."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        digest.update(self.labels.contiguous().numpy().tobytes())
        return digest.hexdigest()


_SPLITS: dict[str, Callable[[bool], tuple[Tensor, Tensor]]] = {"digits": digits_split}

assert _SPLITS.keys() == DATASETS.keys(), "the catalog and the code must name the same data sets"


def load_train(dataset: str) -> ImageSet:
    return ImageSet(*_SPLITS[dataset](True))


def load_test(dataset: str) -> ImageSet:
    return ImageSet(*_SPLITS[dataset](False))
