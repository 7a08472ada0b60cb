"""From a data set's name to its images and labels."""

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
    """The training images of a data set, whose files are in the folder of its name in `datasets_dir`.

    Raises:
        InvalidInput: files are missing or damaged; says what to put where.
    """
    return _LOADERS[dataset](datasets_dir / dataset, True)


def load_test(
    dataset: str, datasets_dir: Path, num_points: int | None = None, preprocessing: Preprocessing | None = None
) -> ImageSet:
    """The first `num_points` test images, or all of them, in memory.

    Args:
        dataset: its name.
        datasets_dir: where the data sets' files are, each in a folder of its name.
        num_points: how many to take.
        preprocessing: for ImageNet, how its images are resized and cropped (`gkl.catalog.preprocessing_for`); None
            for those that trainings use. The images of other data sets all have one size.

    Raises:
        InvalidInput: files are missing or damaged; says what to put where.
    """
    folder = datasets_dir / dataset
    images = imagenet(folder, False, preprocessing) if dataset == "imagenet" else _LOADERS[dataset](folder, False)
    if isinstance(images, ImageSet):
        return images.first(num_points)
    chosen = torch.arange(len(images) if num_points is None else num_points)
    return ImageSet(images.take(chosen), images.labels[chosen])
