"""Data sets in their real file formats with few, random images, and without what only a download could bring."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gkl.data.imagenet import _robustbench_helper_files, evaluated_image_names


def pixels(count: int, *shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    raw = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_cifar10(datasets_dir: Path, per_batch: int = 20) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The extracted archive, with so many images in each of its six batches; returns the training images."""
    folder = datasets_dir / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images, labels = pixels(6 * per_batch, 3072), np.arange(6 * per_batch) % 10
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for number, name in enumerate(names):
        part = slice(number * per_batch, (number + 1) * per_batch)
        batch = {"data": images[part], "labels": labels[part].tolist(), "batch_label": name, "filenames": []}
        # Protocol 2 is what the real files have been written with.
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return images[: 5 * per_batch].reshape(-1, 3, 32, 32), labels[: 5 * per_batch]


def write_imagenet_test_images(datasets_dir: Path, photographs: list[Path]) -> None:
    """RobustBench's 5,000 names, all of them links to these files in turn."""
    for position, name in enumerate(evaluated_image_names()[0]):
        path = datasets_dir / "imagenet" / "val" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(photographs[position % len(photographs)])


def write_photograph(path: Path, width: int, height: int, *, seed: int = 0) -> Path:
    """A JPEG of smooth colours with some noise, another one for each seed."""
    stream = np.random.default_rng(seed)
    corners = Image.fromarray(stream.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(corners.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    noisy = (smooth + stream.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy).save(path, "JPEG", quality=90)
    return path


def write_imagenet_training_images(datasets_dir: Path, photographs: list[Path]) -> None:
    """A thousand class folders with an image each, all of them links to these files in turn."""
    classes = json.loads((_robustbench_helper_files() / "imagenet_class_to_id_map.json").read_text())
    for position, name in enumerate(sorted(classes)):
        path = datasets_dir / "imagenet" / "train" / name / f"{name}_1.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(photographs[position % len(photographs)])


def write_imagenet_shards(datasets_dir: Path, count: int) -> Path:
    """The images of the folder in so many tar archives, in another order; returns the archives' folder."""
    folder, root = datasets_dir / "imagenet" / "train-shards", datasets_dir / "imagenet" / "train"
    folder.mkdir()
    paths = sorted(root.glob("*/*.JPEG"), reverse=True)
    for number in range(count):
        # Else a second link to a file would be a member without content of its own.
        with tarfile.open(folder / f"{number}.tar", "w", dereference=True) as archive:
            for path in paths[number::count]:
                archive.add(path, path.relative_to(root))
    return folder


def write_npz(path: Path, count: int, *, compressed: bool = False, **changes: object) -> dict[str, NDArray[np.generic]]:
    """Generated CIFAR-10 images; `changes` replaces arrays, None leaves one out."""
    arrays = {"image": pixels(count, 32, 32, 3), "label": np.arange(count) % 10, **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    save = np.savez_compressed if compressed else np.savez
    kept = {name: array for name, array in arrays.items() if array is not None}
    save(path, **kept)  # type: ignore[arg-type]
    return kept  # type: ignore[return-value]
