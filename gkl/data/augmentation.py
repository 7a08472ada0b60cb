"""Random crops, flips, squares and AutoAugment on batches of images, on the device they are on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from gkl.device import own_random_stream
from gkl.spec import AutoAugmentation, BasicAugmentation, CutoutAugmentation


def augmented_views(
    images: Tensor, augmentation: BasicAugmentation | None, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """The batch as it is trained on: one view, or two for `autoaug` and `cutout`.

    Args:
        images: (B, C, H, W), uint8, or float32 in [0, 1].
        augmentation: what the spec says; None leaves the images as they are.
        generator: random stream on the images' device.

    Returns:
        Views of the same shape and type as `images`.
    """
    if augmentation is None:
        return (images,)
    first = crop_and_flip(images, augmentation.padding, flip=augmentation.flip, generator=generator)
    if not isinstance(augmentation, AutoAugmentation | CutoutAugmentation):
        return (first,)
    second = crop_and_flip(images, augmentation.padding, flip=augmentation.flip, generator=generator)
    if isinstance(augmentation, CutoutAugmentation):
        return first, cutout(second, augmentation.size, generator)
    return first, autoaugment(second, generator)


def crop_and_flip(images: Tensor, padding: int, *, flip: bool, generator: torch.Generator) -> Tensor:
    """Each image cropped at its own random place out of its zero-padded self, and mirrored with probability 1/2.

    One gather for the whole batch: pixel (i, j) of an image comes from row i + top and column j + left, or, if
    it is mirrored, column W - 1 - j + left.
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


def cutout(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A square of zeros of `size` pixels around a random pixel of each image (arXiv 1708.04552)."""
    batch, _, height, width = images.shape
    device = images.device
    center_row = torch.randint(0, height, (batch, 1), generator=generator, device=device)
    center_column = torch.randint(0, width, (batch, 1), generator=generator, device=device)
    rows = torch.arange(height, device=device) - center_row + size // 2
    columns = torch.arange(width, device=device) - center_column + size // 2
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    return images.masked_fill(inside[:, None], 0)


@cache
def _autoaugment_policy() -> Callable[[Tensor], Tensor]:
    # Imported here: it takes seconds, which runs without it need not spend.
    from torchvision.transforms import v2  # noqa: PLC0415

    policy: Callable[[Tensor], Tensor] = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    return policy


def autoaugment(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random sub-policy of AutoAugment's for CIFAR-10 on each image (arXiv 1805.09501, torchvision's version)."""
    as_bytes = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    policy = _autoaugment_policy()
    with own_random_stream(generator):
        augmented = torch.stack([policy(image) for image in as_bytes])
    return augmented if images.dtype == torch.uint8 else augmented.float() / 255
