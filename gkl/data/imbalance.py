"""Leaves out training images so that the classes become exponentially smaller: long-tailed data from a balanced set."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from gkl.data.images import Images
from gkl.errors import InvalidInput
from gkl.spec import Imbalance

_Data = TypeVar("_Data", bound=Images)


def imbalanced(data: _Data, imbalance: Imbalance, *, num_classes: int, num_held_out: int = 0) -> _Data:
    """The held-out images, which stay the first ones, and after them those that the imbalance leaves, in their order.

    Args:
        data: the training images.
        imbalance: says how many images of each class are left.
        num_classes: C; labels are 0 .. C-1.
        num_held_out: how many of the first images are never trained on. They are neither counted nor left out.

    Raises:
        InvalidInput: a class would have no image.
    """
    labels = data.labels[num_held_out:]
    there = class_counts(labels, num_classes)
    sizes = imbalance.class_sizes(max(there), num_classes)
    for label, (size, count) in enumerate(zip(sizes, there, strict=True)):
        if not min(size, count):
            raise InvalidInput(
                f"imbalance.factor {imbalance.factor:g} leaves no image of class {label}, which has {count} to train "
                f"on where the largest class has {max(there)}; lower the factor, or hold out fewer"
            )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(imbalance.seed))
    kept = torch.cat([order[labels[order] == label][:size] for label, size in enumerate(sizes)])
    return data.subset(torch.cat([torch.arange(num_held_out), num_held_out + kept.sort().values]))


def class_counts(labels: Tensor, num_classes: int) -> tuple[int, ...]:
    """Labels (N,) int64 -> how many images each class has."""
    return tuple(labels.bincount(minlength=num_classes).tolist())
