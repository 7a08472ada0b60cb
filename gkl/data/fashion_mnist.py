"""Loads Fashion-MNIST from its idx files (arXiv 1708.07747)."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gkl.catalog.on_disk import FASHION_MNIST_OF_DEBIAN
from gkl.data.images import ImageSet
from gkl.errors import InvalidInput

_DEBIAN = FASHION_MNIST_OF_DEBIAN
_UNSIGNED_BYTES = 0x08


def fashion_mnist(folder: Path, train: bool) -> ImageSet:
    """Load images (N, 1, 28, 28) uint8 and their labels, in the order of the files: N is 60,000, or 10,000 for test.

    Raises:
        InvalidInput: the files are neither in `folder` nor where Debian's package puts them, or are damaged.
    """
    part = "train" if train else "t10k"
    images = read_idx(_find(folder, f"{part}-images-idx3-ubyte"))
    labels = read_idx(_find(folder, f"{part}-labels-idx1-ubyte"))
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or not len(labels) or labels.max() > 9:
        raise InvalidInput(
            f"the {part} files of Fashion-MNIST hold images {images.shape} and labels {labels.shape}, not 28x28 "
            "images with a label below 10 each; fetch them again"
        )
    return ImageSet(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long())


def _find(folder: Path, name: str) -> Path:
    for directory in (folder, _DEBIAN):
        for candidate in (directory / name, directory / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise InvalidInput(
        f"Fashion-MNIST is not here: put {name}.gz and its three companions into {folder}, "
        "or install Debian's package dataset-fashion-mnist"
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, gzipped or not.

    An idx file consists of two zero bytes, a byte for the type, a byte for the number of dimensions, the size of each
    dimension as a big-endian uint32, and the values.

    Raises:
        InvalidInput: the file is damaged or of another type.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(f"{path} cannot be read ({error}); fetch it again") from error
    dimensions = raw[3] if len(raw) >= 4 and raw[:3] == bytes([0, 0, _UNSIGNED_BYTES]) else 0
    start = 4 + 4 * dimensions
    if dimensions and len(raw) >= start:
        shape = struct.unpack(f">{dimensions}I", raw[4:start])
        if len(raw) - start == np.prod(shape, dtype=np.int64):
            return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()
    raise InvalidInput(f"{path} is not a whole idx file of unsigned bytes; fetch it again")
