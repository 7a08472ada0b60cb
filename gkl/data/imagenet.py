"""Loads ImageNet (ILSVRC 2012): JPEG files in a folder for each class, or training images in tar archives."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gkl.catalog.preprocessing import DEFAULT_PREPROCESSING, Preprocessing
from gkl.data.images import ImageFiles
from gkl.data.photographs import Photograph, read_rgb
from gkl.data.shards import shard_members
from gkl.errors import InvalidInput


def imagenet(folder: Path, train: bool, preprocessing: Preprocessing | None = None) -> ImageFiles:
    """Find the images, which are decoded on demand to (3, height, width) uint8.

    Training images are all <class>/*.JPEG in the tar archives <folder>/train-shards/*.tar, or, if there are none, in
    the folder <folder>/train. Their order is random, the same for both and in every run, so that the first ones are a
    random sample. Test images are the 5,000 of <folder>/val/<class>/ that RobustBench evaluates on, in its order.

    Raises:
        InvalidInput: a class or a test image is missing.
    """
    helper_files = _robustbench_helper_files()
    classes: dict[str, int] = json.loads((helper_files / "imagenet_class_to_id_map.json").read_text())
    shards = folder / "train-shards"
    if train and any(shards.glob("*.tar")):
        found = _in_shards(shards, list(classes))
    elif not (root := folder / ("train" if train else "val")).is_dir():
        raise InvalidInput(
            f"ImageNet is not here: put its images into {folder}/train/<class>/ and {folder}/val/<class>/, "
            "classes named like n01440764"
        )
    else:
        found = _in_folders(root, list(classes)) if train else _evaluated(root)
    if train:
        random.Random(0).shuffle(found)
    labels = torch.tensor([classes[name.split("/")[0]] for name, _ in found])
    return ImageFiles([photograph for _, photograph in found], labels, decoder(preprocessing or DEFAULT_PREPROCESSING))


_Named = list[tuple[str, Photograph]]
"""Photographs with their names, <class>/<file>."""


def _in_shards(folder: Path, classes: list[str]) -> _Named:
    of_class: dict[str, _Named] = {name: [] for name in classes}
    for member in shard_members(folder, ".JPEG"):
        # Others are not ImageNet's; the folders with other names beside ImageNet's are not read either.
        of_class.get(member.name.split("/")[0], []).append((member.name, member))
    _check_whole([f"{name}/*.JPEG in {folder}/*.tar" for name, found in sorted(of_class.items()) if not found])
    return [each for found in of_class.values() for each in sorted(found)]


def _in_folders(root: Path, classes: list[str]) -> _Named:
    found: _Named = [(f"{name}/{path.name}", path) for name in classes for path in sorted((root / name).glob("*.JPEG"))]
    there = {name.split("/")[0] for name, _ in found}
    _check_whole([f"{root}/{name}/*.JPEG" for name in sorted(classes) if name not in there])
    return found


def _evaluated(root: Path) -> _Named:
    names, _ = evaluated_image_names()
    _check_whole([f"{root}/{name}" for name in names if not (root / name).is_file()])
    return [(name, root / name) for name in names]


def _check_whole(missing: list[str]) -> None:
    if missing:
        raise InvalidInput(f"ImageNet is not whole: there is no {missing[0]}, and {len(missing) - 1} more are missing")


def evaluated_image_names() -> tuple[list[str], Tensor]:
    """Return the 5,000 validation images that RobustBench evaluates on, as <class>/<file>, and their labels (5000,)."""
    helper_files = _robustbench_helper_files()
    classes: dict[str, int] = json.loads((helper_files / "imagenet_class_to_id_map.json").read_text())
    names = (helper_files / "imagenet_test_image_ids.txt").read_text().split()
    return names, torch.tensor([classes[name.split("/")[0]] for name in names])


def _robustbench_helper_files() -> Path:
    # The folder is found without importing the package, since that would import its whole model zoo.
    spec = find_spec("robustbench")
    if spec is None or spec.origin is None:
        raise InvalidInput("the package robustbench lists ImageNet's classes and test images; install it")
    return Path(spec.origin).parent / "helper_files"


@cache
def decoder(preprocessing: Preprocessing) -> Callable[[Photograph], Tensor]:
    """Return a function from an image file to (3, height, width) uint8, resized and cropped as in RobustBench."""
    # Imported here: the import takes seconds, and other data sets do not need it.
    from torchvision.transforms import InterpolationMode, v2  # noqa: PLC0415

    resize, crop = preprocessing.resize, preprocessing.crop
    steps = [] if resize is None else [v2.Resize(resize, InterpolationMode(preprocessing.interpolation))]
    steps += [] if crop is None else [v2.CenterCrop(crop)]
    transform: Callable[[Image.Image], Tensor] = v2.Compose([*steps, v2.PILToTensor()])
    return partial(_decode, transform)


def _decode(transform: Callable[[Image.Image], Tensor], photograph: Photograph) -> Tensor:
    return transform(read_rgb(photograph))
