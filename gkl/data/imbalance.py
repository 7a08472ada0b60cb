"""Long-tailed training sets: exponential sub-sampling of the classes (arXiv 1901.05555, as for CIFAR-LT)."""

from __future__ import annotations

import torch
from torch import Tensor

from gkl.errors import InvalidInput
from gkl.spec import Imbalance

MANY, FEW = 100, 20
"""Classes with more training images than the first are many-shot, with fewer than the second few-shot; those between
are medium-shot (arXiv 1904.05160)."""


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Images of each class: (N,) int64 -> (C,) int64."""
    return torch.bincount(labels, minlength=num_classes)


def long_tailed_rows(labels: Tensor, imbalance: Imbalance, *, num_classes: int) -> Tensor:
    """Choose training images so that class c keeps n_c = int(n_max * factor^(-c / (C - 1))) of its images.

    n_max is the size of the largest class. Each class keeps the first of its images in a random order that the
    imbalance's seed gives, and never more than it has.

    Args:
        labels: (N,) int64, of the images to choose from.
        imbalance: factor and seed.
        num_classes: C, at least 2.

    Returns:
        The row numbers of the chosen images, rising, (M,) int64.

    Raises:
        InvalidInput: a class would be left without an image.
    """
    available = class_counts(labels, num_classes)
    largest = int(available.max())
    generator = torch.Generator().manual_seed(imbalance.seed)
    kept = []
    for number in range(num_classes):
        wanted = kept_of_class(largest, number, imbalance, num_classes)
        rows = (labels == number).nonzero().flatten()
        if wanted == 0 or len(rows) == 0:
            raise InvalidInput(
                f"imbalance.factor {imbalance.factor:g} leaves class {number} without an image, since the largest "
                f"class has {largest}; lower the factor"
            )
        kept.append(rows[torch.randperm(len(rows), generator=generator)[:wanted]])
    return torch.cat(kept).sort().values


def kept_of_class(largest: int, number: int, imbalance: Imbalance, num_classes: int) -> int:
    """n_c of class `number`, where the largest class has `largest` images."""
    return int(largest * imbalance.factor ** (-number / (num_classes - 1)))
