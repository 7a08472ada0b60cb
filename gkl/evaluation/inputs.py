"""Checks that every attack of an evaluation can run on the given images and labels."""

from __future__ import annotations

import torch

from gkl.data import ImageSet
from gkl.errors import InvalidInput
from gkl.spec import Evaluation

# Square in L1 and L2 starts from five tiles side by side, each at least a pixel wide.
_SMALLEST_SIDE = 5


def checked_images(data: ImageSet, num_classes: int, evaluation: Evaluation) -> ImageSet:
    """The data in a form that every attack accepts: images uint8 or float32, labels int64, contiguous, on the CPU.

    Raises:
        InvalidInput: images or labels have a shape, type or range on which an attack of the evaluation cannot run.
    """
    images, labels = data.images, data.labels
    if images.dim() != 4 or 0 in images.shape:
        raise InvalidInput(
            f"the images have shape {tuple(images.shape)}; an evaluation needs (points, channels, height, width)"
        )
    if num_classes < 2:
        raise InvalidInput(f"a classifier has at least 2 classes, not {num_classes}")
    if labels.shape != images.shape[:1]:
        raise InvalidInput(f"there are {len(images)} images, but labels of shape {tuple(labels.shape)}; give one each")
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise InvalidInput(f"labels must be whole numbers from 0 to {num_classes - 1} for {num_classes} classes")
    smallest = min(images.shape[2:])
    is_square_in_tiles = "square" in evaluation.attack_names and getattr(evaluation.threat_model, "norm", "") != "Linf"
    if is_square_in_tiles and smallest < _SMALLEST_SIDE:
        raise InvalidInput(
            f"Square in L1 and L2 needs images of at least {_SMALLEST_SIDE} x {_SMALLEST_SIDE} pixels, and these have "
            f"{images.shape[2]} x {images.shape[3]}; take the protocol 'custom' without it"
        )
    if is_square_in_tiles and any(_tiles_leave_the_image(side) for side in images.shape[2:]):
        raise InvalidInput(
            f"Square in L1 and L2 cannot tile images of {images.shape[2]} x {images.shape[3]} pixels; take the "
            "protocol 'custom' without it, or pad them"
        )
    if images.dtype != torch.uint8:
        if not images.is_floating_point():
            raise InvalidInput(f"the images are {images.dtype}; give uint8 pixels, or floats in [0, 1]")
        low, high = float(images.min()), float(images.max())
        # The attacks clamp to [0, 1]; for images outside it they give wrong results without an error.
        if not (low >= 0.0 and high <= 1.0):
            raise InvalidInput(
                f"the images have values from {low:g} to {high:g}, but an evaluation needs them in [0, 1]; "
                "leave normalization to the model"
            )
        images = images.float()
    return ImageSet(images.cpu().contiguous(), labels.long().cpu().contiguous())


def _tiles_leave_the_image(side: int) -> bool:
    """Whether Square's first tiles, each a fifth of the side wide, exceed the image, as they do at 12 or 14 pixels."""
    tile = side // 5
    return tile > 1 and (side - 5 * tile) // 2 + side // tile * tile > side
