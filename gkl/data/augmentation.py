"""Random crops, flips, rotations, cutout and AutoAugment for batches of images, on the images' device."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gkl.device import own_random_stream
from gkl.spec import Augmentation, AutoAugmentation, BasicAugmentation, CutoutAugmentation, ResizedCropAugmentation


def augmented_views(
    images: Tensor, augmentation: Augmentation | None, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Augment a batch for training: one view, or two for `autoaug` and `cutout`.

    Args:
        images: (B, C, H, W), uint8, or float32 in [0, 1].
        augmentation: the spec's augmentation; None returns the images unchanged, and so does `resized_crop`, which is
            applied when an image is decoded.
        generator: random stream on the images' device.

    Returns:
        Views of the same shape and type as `images`.
    """
    if augmentation is None or isinstance(augmentation, ResizedCropAugmentation):
        return (images,)
    first = _basic_view(images, augmentation, generator)
    if not isinstance(augmentation, AutoAugmentation | CutoutAugmentation):
        return (first,)
    second = _basic_view(images, augmentation, generator)
    if isinstance(augmentation, CutoutAugmentation):
        return first, cutout(second, augmentation.size, generator)
    return first, autoaugment(second, generator, fill=augmentation.fill, shear=augmentation.shear)


def _basic_view(images: Tensor, augmentation: BasicAugmentation, generator: torch.Generator) -> Tensor:
    view = crop_and_flip(images, augmentation.padding, flip=augmentation.flip, generator=generator)
    # Without rotation no random number is drawn, so that runs from before this option existed stay reproducible.
    return rotate(view, augmentation.rotation, generator) if augmentation.rotation else view


def crop_and_flip(images: Tensor, padding: int, *, flip: bool, generator: torch.Generator) -> Tensor:
    """Pad each image with zeros, crop it back to its size at a random place, and mirror it with probability 1/2.

    The whole batch is one indexing operation: pixel (i, j) of an image comes from row i + top and column j + left of
    the padded image, or, if it is mirrored, from column W - 1 - j + left.
    """
    batch, channels, height, width = images.shape
    device = images.device
    top, left = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator, device=device)
    rows = torch.arange(height, device=device) + top
    columns = torch.arange(width, device=device).expand(batch, -1)
    if flip:
        mirrored = torch.rand(batch, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    columns = columns + left
    padded = F.pad(images, (padding,) * 4)
    sample = torch.arange(batch, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def rotate(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Rotate each image about its center by its own angle, uniform in [-degrees, degrees], as Pillow does.

    Each pixel takes the value of the pixel that its center comes from (nearest neighbor), or 0 outside the image.
    """
    batch, channels, height, width = images.shape
    device = images.device
    angle = (2 * torch.rand(batch, generator=generator, device=device) - 1).double() * math.radians(degrees)
    # Coordinates of pixel centers, relative to the image's center.
    y = torch.arange(height, device=device).double()[:, None] + 0.5 - height / 2
    x = torch.arange(width, device=device).double() + 0.5 - width / 2
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    rows = (sin * x + cos * y + height / 2).floor().long()
    columns = (cos * x - sin * y + width / 2).floor().long()
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    sample = torch.arange(batch, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    return images[sample, channel, rows[:, None], columns[:, None]] * inside[:, None]


def cutout(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Set a square of `size` x `size` pixels around a random pixel of each image to 0 (arXiv 1708.04552)."""
    batch, _, height, width = images.shape
    device = images.device
    center_row = torch.randint(0, height, (batch, 1), generator=generator, device=device)
    center_column = torch.randint(0, width, (batch, 1), generator=generator, device=device)
    rows = torch.arange(height, device=device) - center_row + size // 2
    columns = torch.arange(width, device=device) - center_column + size // 2
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    return images.masked_fill(inside[:, None], 0)


@cache
def _autoaugment_policy(fill: int, shear: Literal["nearest", "bicubic"]) -> Callable[[Tensor], Tensor]:
    # Imported here: the import takes seconds, and most runs do not need it.
    from torchvision.transforms import v2  # noqa: PLC0415

    class WithBicubicShear(v2.AutoAugment):  # type: ignore[misc]
        """Shears with Pillow's bicubic interpolation. torchvision's differs, and its option also changes rotations."""

        def _apply_image_or_video_transform(
            self, image: Tensor, transform_id: str, magnitude: float, interpolation: Any, fill: Any
        ) -> Any:
            if transform_id in ("ShearX", "ShearY"):
                return bicubic_shear(image, magnitude, along="x" if transform_id == "ShearX" else "y", fill=gray)
            return super()._apply_image_or_video_transform(image, transform_id, magnitude, interpolation, fill)

    gray = fill
    made = WithBicubicShear if shear == "bicubic" else v2.AutoAugment
    policy: Callable[[Tensor], Tensor] = made(v2.AutoAugmentPolicy.CIFAR10, fill=fill or None)
    return policy


def autoaugment(
    images: Tensor, generator: torch.Generator, *, fill: int = 0, shear: Literal["nearest", "bicubic"] = "nearest"
) -> Tensor:
    """Apply a random sub-policy of AutoAugment for CIFAR-10 to each image (arXiv 1805.09501, torchvision's version).

    Args:
        images: (B, 3, H, W), uint8, or float32 in [0, 1].
        generator: random stream on the images' device.
        fill: gray level in [0, 255] of pixels that a shear, translation or rotation leaves empty.
        shear: interpolation of shears.

    Returns:
        Images of the same shape and type as `images`.
    """
    as_bytes = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    policy = _autoaugment_policy(fill, shear)
    with own_random_stream(generator):
        augmented = torch.stack([policy(image) for image in as_bytes])
    return augmented if images.dtype == torch.uint8 else augmented.float() / 255


def bicubic_shear(image: Tensor, amount: float, *, along: Literal["x", "y"], fill: int) -> Tensor:
    """Shear an image with Pillow's bicubic interpolation.

    Pixel (x, y) of the result comes from (x + amount * y, y), or along y from (x, y + amount * x).

    Args:
        image: (3, H, W) uint8.
        amount: shift in pixels per row, or per column along y.
        along: which coordinate the shear changes.
        fill: gray level in [0, 255] outside the image.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    matrix = (1, amount, 0, 0, 1, 0) if along == "x" else (1, 0, 0, amount, 1, 0)
    sheared = picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=(fill, fill, fill)
    )
    pixels = torch.frombuffer(bytearray(sheared.tobytes()), dtype=torch.uint8)
    return pixels.reshape(image.shape[1], image.shape[2], 3).permute(2, 0, 1).contiguous().to(image.device)
