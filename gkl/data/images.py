"""Images with labels, in memory or in files that are decoded on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from gkl.data.photographs import Photograph, name_and_size


class Images(Protocol):
    """N images with labels (N,) int64 on the CPU."""

    @property
    def labels(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Tensor:
        """Indices (B,) int64 -> images (B, channels, height, width), uint8, or float32 in [0, 1]."""
        ...

    def subset(self, index: Tensor) -> Self:
        """The images with indices (M,) int64, in this order."""
        ...

    def sha256(self) -> str:
        """Return a hash that identifies the data: it is equal for two runs on the same data."""
        ...


def unit_range(images: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in [0, 1]; return floating-point images unchanged."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


@dataclass(frozen=True)
class ImageSet:
    """Images in memory: (N, channels, height, width), uint8, or float32 in [0, 1], with labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Tensor:
        return self.images[index.to(self.images.device)]

    def subset(self, index: Tensor) -> ImageSet:
        return ImageSet(self.images[index], self.labels[index])

    def first(self, num_points: int | None) -> ImageSet:
        """Return the first `num_points` images and labels; all of them if it is None."""
        return self if num_points is None else ImageSet(self.images[:num_points], self.labels[:num_points])

    def sha256(self) -> str:
        """Return the sha256 of shape, pixels and labels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        digest.update(self.labels.contiguous().numpy().tobytes())
        return digest.hexdigest()


class ImageFiles:
    """Images in files that are decoded on demand, several at a time."""

    def __init__(
        self, photographs: Sequence[Photograph], labels: Tensor, decode: Callable[[Photograph], Tensor]
    ) -> None:
        """
        Args:
            photographs: N image files, or members of tar archives.
            labels: (N,) int64.
            decode: returns a file's image (channels, height, width) uint8, with the same shape for all files.
        """
        self.photographs, self._labels, self.decode = photographs, labels, decode
        self._pool = ThreadPoolExecutor(thread_name_prefix="decode")

    @property
    def labels(self) -> Tensor:
        return self._labels

    def __len__(self) -> int:
        return len(self.photographs)

    def take(self, index: Tensor) -> Tensor:
        return torch.stack(list(self._pool.map(lambda i: self.decode(self.photographs[i]), index.tolist())))

    def subset(self, index: Tensor) -> ImageFiles:
        return ImageFiles([self.photographs[i] for i in index.tolist()], self._labels[index], self.decode)

    def sha256(self) -> str:
        """Return the sha256 of the files' names, sizes and labels. Reading all pixels would take an hour."""
        digest = hashlib.sha256()
        for photograph, label in zip(self.photographs, self._labels.tolist(), strict=True):
            name, size = name_and_size(photograph)
            digest.update(f"{name} {size} {label}\n".encode())
        return digest.hexdigest()
