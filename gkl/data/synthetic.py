"""Reads generated training images from an .npz file that may be larger than memory (154 GB in arXiv 2302.04638)."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import struct
import weakref
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from gkl.errors import InvalidInput
from gkl.files import atomic_path

_LOCAL_HEADER_BYTES = 30
_LABELS_PER_CHECK = 100_000


@dataclass(frozen=True)
class _Array:
    """An array's position and type in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])


class SyntheticImages:
    """The rows of an .npz with 'image' (N, H, W, C) uint8 and 'label' (N,) integers, read on demand.

    An .npz is a zip archive of arrays. `numpy.savez` stores them uncompressed, so that a row can be read directly at
    its offset. A file of `numpy.savez_compressed` is unpacked once, into the same folder.
    """

    def __init__(self, path: Path, *, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """
        Raises:
            InvalidInput: the file is missing or damaged, or its arrays have other shapes, types or labels than the
                training needs.
        """
        self.path = path
        if not path.is_file():
            raise InvalidInput(f"there are no generated images at {path}; put an .npz with 'image' and 'label' there")
        try:
            self._sha256 = _content_sha256(path)
            stored = _stored(path)
            self._descriptor = os.open(stored, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
            self._images, self._labels = _find_array(stored, "image"), _find_array(stored, "label")
        except InvalidInput:
            raise
        except Exception as error:
            # zipfile, zlib and numpy's header parser raise many different errors for damaged files.
            raise InvalidInput(f"{path} cannot be read as .npz ({error}); fetch or write it again") from error
        self._check(image_shape, num_classes)

    def __len__(self) -> int:
        return self._images.shape[0]

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (B,) int64 -> images (B, channels, height, width) uint8 and labels (B,) int64."""
        images = self._rows(self._images, index)
        labels = self._rows(self._labels, index)
        return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))

    def sha256(self) -> str:
        """Return the sha256 of the arrays' names, sizes and stored CRC-32s; hashing all data would take minutes."""
        return self._sha256

    def _rows(self, array: _Array, index: Tensor) -> NDArray[Any]:
        out = np.empty((len(index), *array.shape[1:]), array.dtype)
        rows = out.reshape(len(index), -1)
        # Rows are read in the order of the file, which is faster on disks.
        for place in index.argsort().tolist():
            start = array.offset + int(index[place]) * array.row_bytes
            try:
                read = os.preadv(self._descriptor, [rows[place]], start)
            except OSError as error:
                raise InvalidInput(
                    f"{self.path} can no longer be read ({error.strerror}); resume when it can"
                ) from error
            if read != array.row_bytes:
                raise InvalidInput(f"{self.path} ended before row {int(index[place])}; was it changed during the run?")
        return out

    def _check(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        channels, height, width = image_shape
        images, labels = self._images, self._labels
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, channels):
            raise InvalidInput(
                f"'image' in {self.path} is {images.dtype} {images.shape}; it must be uint8 "
                f"(N, {height}, {width}, {channels})"
            )
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or not len(self):
            raise InvalidInput(
                f"'label' in {self.path} is {labels.dtype} {labels.shape}; it must hold one integer for each of the "
                f"{len(self)} images"
            )
        for start in range(0, len(self), _LABELS_PER_CHECK):
            count = min(_LABELS_PER_CHECK, len(self) - start)
            part = np.empty(count, labels.dtype)
            read = os.preadv(self._descriptor, [part.data], labels.offset + start * labels.row_bytes)
            if read < part.nbytes:
                raise InvalidInput(f"{self.path} ends within its labels; fetch or write it again")
            wrong = np.flatnonzero((part < 0) | (part >= num_classes))
            if len(wrong):
                raise InvalidInput(
                    f"label {part[wrong[0]]} of image {start + wrong[0]} in {self.path} is not one of the classes "
                    f"0 to {num_classes - 1}; is it the file of another data set?"
                )


def _content_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            digest.update(f"{info.filename} {info.file_size} {info.CRC}\n".encode())
    return digest.hexdigest()


def _stored(path: Path) -> Path:
    """Return the file itself if it is uncompressed, else its unpacked copy. Makes that copy if there is none."""
    with zipfile.ZipFile(path) as archive:
        if all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist()):
            return path
        unpacked = path.with_suffix(".unpacked.npz")
        if unpacked.is_file() and _content_sha256(unpacked) == _content_sha256(path):
            return unpacked
        try:
            with atomic_path(unpacked) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as copy:
                for info in archive.infolist():
                    with archive.open(info) as source, copy.open(info.filename, "w", force_zip64=True) as target:
                        shutil.copyfileobj(source, target, 1 << 20)
        except OSError as error:
            size = sum(info.file_size for info in archive.infolist())
            raise InvalidInput(
                f"{path} is compressed, and its unpacked copy of {size / 2**30:.1f} GiB cannot be written beside it "
                f"({error.strerror}); write it with numpy.savez instead"
            ) from error
    return unpacked


def _find_array(path: Path, key: str) -> _Array:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        names = archive.namelist()
        if f"{key}.npy" not in names:
            held = ", ".join(repr(name.removesuffix(".npy")) for name in names)
            raise InvalidInput(
                f"{path} has no array {key!r}, only {held or 'nothing'}; name its arrays 'image' and 'label'"
            )
        info = archive.getinfo(f"{key}.npy")
        # The lengths of name and extra field are read from the entry's local header: its extra field may have another
        # length than in the archive's directory.
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER_BYTES)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        file.seek(info.header_offset + _LOCAL_HEADER_BYTES + name_length + extra_length)
        start = file.tell()
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        array = _Array(file.tell(), shape, dtype)
        if fortran_order or dtype.hasobject or not shape:
            raise ValueError(f"{key!r} is not a plain array in C order")
        if file.tell() - start + shape[0] * array.row_bytes != info.file_size:
            raise ValueError(f"{key!r} is not as long as its header says")
        return array
