"""Lists the data sets and published weights that a machine has, by looking for their files. Free of torch.

Workers report the lists to the service, which warns the submitter of a job if no worker has the job's files. The files
are not opened, so that a damaged one is only noticed by the run that reads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gkl.catalog import CORRUPTED_DATASETS, DATASETS
from gkl.catalog.network_tensors import published

CIFAR_FILES = {
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-python"),
}
"""Data set -> its archive, and the folder in the archive."""
FASHION_MNIST_OF_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the data set."""


def _has_cifar(name: str) -> Callable[[Path], bool]:
    archive, directory = CIFAR_FILES[name]
    return lambda folder: (folder / directory).is_dir() or (folder / archive).is_file()


def _has_fashion_mnist(folder: Path) -> bool:
    names = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
    places = (folder, FASHION_MNIST_OF_DEBIAN)
    return any((place / f"{name}{end}").is_file() for name in names for place in places for end in ("", ".gz"))


_LOOKS: dict[str, Callable[[Path], bool]] = {
    "fashion_mnist": _has_fashion_mnist,
    "cifar10": _has_cifar("cifar10"),
    "cifar100": _has_cifar("cifar100"),
    "imagenet": lambda folder: any((folder / part).is_dir() for part in ("train", "train-shards", "val")),
}


def datasets_here(datasets_dir: Path) -> list[str]:
    """Return the names of the data sets whose files are in `datasets_dir`, and of their corrupted versions
    ('CIFAR-10-C').

    Includes 'digits', whose images are part of scikit-learn.
    """
    found = [name for name in DATASETS if name not in _LOOKS or _LOOKS[name](datasets_dir / name)]
    return found + [
        corrupted for name, corrupted in CORRUPTED_DATASETS.items() if (datasets_dir / name / corrupted).is_dir()
    ]


def published_here(models_dir: Path) -> list[str]:
    """Return the architectures whose published weights are in `models_dir`, in RobustBench's layout, or in torch's
    cache."""
    cache = _torch_cache()
    return [
        name
        for name, places in published().items()
        if all((models_dir / file).is_file() for file in places.files)
        or (places.in_torch_cache is not None and (cache / places.in_torch_cache).is_file())
    ]


def _torch_cache() -> Path:
    """Return the folder in which `torch.hub` keeps its downloads."""
    general = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(general, "torch"))  # noqa: PTH118 - as torch joins them
    return Path(home).expanduser() / "hub" / "checkpoints"
