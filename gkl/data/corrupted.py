"""Loads corrupted test images: CIFAR-10-C, CIFAR-100-C and ImageNet-C (arXiv 1903.12261), as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gkl.catalog import CORRUPTED_DATASETS, DATASETS
from gkl.catalog.preprocessing import CORRUPTED_PREPROCESSING
from gkl.data.imagenet import decoder, evaluated_image_names
from gkl.data.images import ImageFiles, Images, ImageSet
from gkl.errors import InvalidInput

SEVERITIES = (1, 2, 3, 4, 5)


def load_corrupted(dataset: str, datasets_dir: Path, corruption: str, severity: int) -> Images:
    """Load a data set's test images with one corruption at a severity of 1 to 5, in the order of the clean images.

    Raises:
        InvalidInput: files are missing or damaged; the message says which files to put where.
    """
    folder = datasets_dir / dataset / CORRUPTED_DATASETS[dataset]
    if not folder.is_dir():
        wanted = (
            f"{folder}/gaussian_noise/1/n01440764/*.JPEG and so on"
            if dataset == "imagenet"
            else f"{folder}/gaussian_noise.npy and its companions"
        )
        raise InvalidInput(f"{CORRUPTED_DATASETS[dataset]} is not here: put its files at {wanted}")
    if dataset == "imagenet":
        return _imagenet(folder / corruption / str(severity))
    return _cifar(folder, corruption, severity, DATASETS[dataset].num_classes)


def _cifar(folder: Path, corruption: str, severity: int, num_classes: int) -> ImageSet:
    """Load one severity of a corruption from a file that holds all five, one after the other.

    The file is memory-mapped, so that the other severities are not read.
    """
    path, labels_path = folder / f"{corruption}.npy", folder / "labels.npy"
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        labels = np.load(labels_path, allow_pickle=False)
    except FileNotFoundError as error:
        raise InvalidInput(f"{folder.name} is not whole: there is no {error.filename}") from error
    except (ValueError, EOFError, OSError) as error:
        raise InvalidInput(f"{path} or its labels.npy cannot be read ({error}); fetch {folder.name} again") from error
    each, rest = divmod(len(images) if images.ndim else 0, len(SEVERITIES))
    if images.dtype.kind not in "iu" or images.shape[1:] != (32, 32, 3) or rest or not each:
        raise InvalidInput(
            f"{path} has shape {images.shape} of {images.dtype}; expected five severities of 32 x 32 x 3 uint8 images"
        )
    if labels.dtype.kind not in "iu" or labels.shape not in ((each,), (len(images),)):
        raise InvalidInput(
            f"{labels_path} has shape {labels.shape} of {labels.dtype}; expected a whole number for each of the "
            f"{len(images)} images, or of the {each} of one severity"
        )
    part = slice((severity - 1) * each, severity * each)
    chosen = labels[part] if len(labels) == len(images) else labels
    if chosen.min() < 0 or chosen.max() >= num_classes:
        raise InvalidInput(f"{labels_path} has labels outside 0 to {num_classes - 1}; fetch {folder.name} again")
    pixels = images[part].transpose(0, 3, 1, 2)
    if images.dtype != np.uint8 and (pixels.min() < 0 or pixels.max() > 255):
        raise InvalidInput(f"{path} has pixels outside 0 to 255; fetch {folder.name} again")
    # Copied into this machine's byte order, the only one that torch accepts.
    return ImageSet(
        torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.uint8)), torch.from_numpy(chosen.astype(np.int64))
    )


def _imagenet(folder: Path) -> ImageFiles:
    """Load the corrupted versions of the 5,000 images that RobustBench evaluates on, in RobustBench's order."""
    names, labels = evaluated_image_names()
    paths = [folder / name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InvalidInput(
            f"ImageNet-C is not whole: there is no {missing[0]}, and {len(missing) - 1} more are missing"
        )
    # RobustBench's `benchmark` uses this preprocessing for every model, even if it prepares clean images differently.
    return ImageFiles(paths, labels, decoder(CORRUPTED_PREPROCESSING))
