"""Which data sets and published weights a machine has, told by the names of their files. Free of torch.

A worker tells the service, which says so to whoever sends a job. Damaged files are found by the run that reads them.
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
"""The archive, and the folder out of it."""
FASHION_MNIST_OF_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts it."""


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
    "imagenet": lambda folder: (folder / "train").is_dir() or (folder / "val").is_dir(),
}


def datasets_here(datasets_dir: Path) -> list[str]:
    """Names of the data sets whose files are there, and of their corrupted versions ('CIFAR-10-C').

    Of a data set that this does not know how to find it says that it is there: digits come with a package.
    """
    found = [name for name in DATASETS if name not in _LOOKS or _LOOKS[name](datasets_dir / name)]
    return found + [
        corrupted for name, corrupted in CORRUPTED_DATASETS.items() if (datasets_dir / name / corrupted).is_dir()
    ]


def published_here(models_dir: Path) -> list[str]:
    """The architectures whose published weights are there, as RobustBench keeps them, or in torch's cache."""
    cache = _torch_cache()
    return [
        name
        for name, places in published().items()
        if all((models_dir / file).is_file() for file in places.files)
        or (places.in_torch_cache is not None and (cache / places.in_torch_cache).is_file())
    ]


def _torch_cache() -> Path:
    """Where `torch.hub` keeps what it has downloaded."""
    general = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(general, "torch"))  # noqa: PTH118 - as torch joins them
    return Path(home).expanduser() / "hub" / "checkpoints"
