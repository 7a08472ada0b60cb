"""Loads a data set by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from gkl.catalog import DATASETS
from gkl.catalog.preprocessing import Preprocessing
from gkl.data.cifar import cifar10, cifar100
from gkl.data.digits import digits
from gkl.data.fashion_mnist import fashion_mnist
from gkl.data.imagenet import imagenet
from gkl.data.images import Images, ImageSet

_LOADERS: dict[str, Callable[[Path, bool], Images]] = {
    "digits": lambda folder, train: digits(train),
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": imagenet,
}

assert _LOADERS.keys() == DATASETS.keys(), "the catalog and the code must name the same data sets"


def load_train(dataset: str, datasets_dir: Path) -> Images:
    """Load the training images of a data set from its folder in `datasets_dir`, which has the data set's name.

    Raises:
        InvalidInput: files are missing or damaged; the message says which files to put where.
    """
    return _LOADERS[dataset](datasets_dir / dataset, True)


def load_test(
    dataset: str, datasets_dir: Path, num_points: int | None = None, preprocessing: Preprocessing | None = None
) -> ImageSet:
    """Load the first `num_points` test images, or all of them, into memory.

    Args:
        dataset: the data set's name.
        datasets_dir: the folder with the data sets, each in a subfolder of its name.
        num_points: how many to load; by default all.
        preprocessing: how ImageNet's images are resized and cropped (`gkl.catalog.preprocessing_for`); None means as
            in trainings. Other data sets ignore it.

    Raises:
        InvalidInput: files are missing or damaged; the message says which files to put where.
    """
    images = find_test(dataset, datasets_dir, preprocessing)
    if isinstance(images, ImageSet):
        return images.first(num_points)
    chosen = torch.arange(len(images) if num_points is None else num_points)
    return ImageSet(images.take(chosen), images.labels[chosen])


def find_test(dataset: str, datasets_dir: Path, preprocessing: Preprocessing | None = None) -> Images:
    """All test images, those in files not decoded yet. Arguments and errors as in `load_test`."""
    folder = datasets_dir / dataset
    return imagenet(folder, False, preprocessing) if dataset == "imagenet" else _LOADERS[dataset](folder, False)
