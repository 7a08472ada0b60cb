"""Random resized crops of photographs, each drawn from a seed of its own, so that the process that decodes an image
does not matter."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gkl.data.photographs import Photograph, read_rgb
from gkl.spec import ResizedCropAugmentation

_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10


def resized_crop(augmentation: ResizedCropAugmentation, side: int) -> Callable[[Photograph, int], Tensor]:
    """Return a function from a photograph and a seed to (3, side, side) uint8.

    The crop is that of torchvision's `RandomResizedCrop` with bilinear interpolation and antialiasing, and
    `RandomHorizontalFlip`, on Pillow images; only the random numbers come from Python's generator.
    """
    return partial(_crop, side=side, min_scale=augmentation.min_scale, flip=augmentation.flip)


def _crop(photograph: Photograph, seed: int, *, side: int, min_scale: float, flip: bool) -> Tensor:
    stream = random.Random(seed)
    image = read_rgb(photograph)
    top, left, height, width = draw_box(stream, image.height, image.width, min_scale)
    cropped = image.crop((left, top, left + width, top + height))
    # Pillow's bilinear filter covers all pixels that a new one comes from: that is the antialiasing.
    resized = cropped.resize((side, side), Image.Resampling.BILINEAR)
    if flip and stream.random() < 0.5:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def draw_box(stream: random.Random, height: int, width: int, min_scale: float) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) of a crop as torchvision does.

    Its share of the area is uniform in [min_scale, 1], and the logarithm of width / height is uniform between those of
    3/4 and 4/3. If no box of ten fits into the image, it is the largest central one with a ratio within those limits.
    """
    low, high = _RATIO
    for _ in range(_ATTEMPTS):
        area = height * width * stream.uniform(min_scale, 1.0)
        ratio = math.exp(stream.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return stream.randrange(height - h + 1), stream.randrange(width - w + 1), h, w
    if width / height < low:
        w, h = width, round(width / low)
    elif width / height > high:
        w, h = round(height * high), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w
