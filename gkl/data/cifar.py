"""Loads CIFAR-10 and CIFAR-100 from the Python version of their archives.

The archives contain pickles, and loading a pickle can run any code. The unpickler here builds arrays only.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gkl.catalog.on_disk import CIFAR_FILES
from gkl.data.images import ImageSet
from gkl.errors import InvalidInput


@dataclass(frozen=True)
class _Layout:
    """Layout of one data set's archive."""

    title: str
    archive: str
    directory: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_key: str
    num_classes: int


_CIFAR10 = _Layout(
    title="CIFAR-10",
    archive=CIFAR_FILES["cifar10"][0],
    directory=CIFAR_FILES["cifar10"][1],
    train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    test=("test_batch",),
    label_key="labels",
    num_classes=10,
)
_CIFAR100 = _Layout(
    title="CIFAR-100",
    archive=CIFAR_FILES["cifar100"][0],
    directory=CIFAR_FILES["cifar100"][1],
    train=("train",),
    test=("test",),
    label_key="fine_labels",
    num_classes=100,
)


def cifar10(folder: Path, train: bool) -> ImageSet:
    """Load images (N, 3, 32, 32) uint8 and labels 0 to 9, in the order of the files: N is 50,000, or 10,000 for test.

    Raises:
        InvalidInput: neither the archive nor its extracted folder is in `folder`, or it is damaged.
    """
    return _read(folder, _CIFAR10, train)


def cifar100(folder: Path, train: bool) -> ImageSet:
    """Like `cifar10`, with the fine labels 0 to 99."""
    return _read(folder, _CIFAR100, train)


def _read(folder: Path, layout: _Layout, train: bool) -> ImageSet:
    names = layout.train if train else layout.test
    directory, archive = folder / layout.directory, folder / layout.archive
    if not directory.is_dir() and not archive.is_file():
        raise InvalidInput(
            f"{layout.title} is not here: put {layout.archive}, or its extracted folder {layout.directory}, "
            f"into {folder}"
        )
    try:
        if directory.is_dir():
            raw = [(directory / name).read_bytes() for name in names]
        else:
            with tarfile.open(archive) as tar:
                raw = [_member(tar, f"{layout.directory}/{name}") for name in names]
        parts = [_images_and_labels(content, layout) for content in raw]
    except Exception as error:
        # A damaged pickle can raise anything.
        raise InvalidInput(
            f"{layout.title} in {folder} cannot be read ({error}); fetch {layout.archive} again"
        ) from error
    return ImageSet(torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]))


def _images_and_labels(content: bytes, layout: _Layout) -> tuple[Tensor, Tensor]:
    batch = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    images, labels = np.asarray(batch["data"]), np.asarray(batch[layout.label_key])
    if images.dtype != np.uint8 or images.shape != (len(labels), 3072):
        raise ValueError("a batch is not rows of 3,072 bytes with a label each")
    if not ((labels >= 0) & (labels < layout.num_classes)).all():
        raise ValueError(f"a batch has labels outside 0 to {layout.num_classes - 1}")
    # Copied into this machine's byte order, the only one that torch accepts.
    return torch.from_numpy(images).reshape(-1, 3, 32, 32), torch.from_numpy(labels.astype(np.int64))


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise ValueError(f"{name} in the archive is not a file")
    with file:
        return file.read()


class _PlainUnpickler(pickle.Unpickler):
    """Builds dictionaries, lists, numbers, strings and numpy arrays, and refuses to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            # Python 3 writes bytes as a call of this function in pickle protocol 2.
            return _latin1_bytes
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _latin1_bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin1")
