"""Loads ImageNet (ILSVRC 2012) from folders of JPEG files, one folder per class."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gkl.catalog.preprocessing import DEFAULT_PREPROCESSING, Preprocessing
from gkl.data.images import ImageFiles
from gkl.errors import InvalidInput


def imagenet(folder: Path, train: bool, preprocessing: Preprocessing | None = None) -> ImageFiles:
    """Find the images, which are decoded on demand to (3, height, width) uint8.

    The training images are all files in <folder>/train/<class>/, in a fixed random order, so that the first ones are a
    random sample. The test images are the 5,000 files in <folder>/val/<class>/ that RobustBench evaluates on, in
    RobustBench's order.

    Raises:
        InvalidInput: a class or a test image is missing.
    """
    helper_files = _robustbench_helper_files()
    classes: dict[str, int] = json.loads((helper_files / "imagenet_class_to_id_map.json").read_text())
    root = folder / ("train" if train else "val")
    if not root.is_dir():
        raise InvalidInput(
            f"ImageNet is not here: put its images into {folder}/train/<class>/ and {folder}/val/<class>/, "
            "classes named like n01440764"
        )
    if train:
        paths = [path for name in classes for path in sorted((root / name).glob("*.JPEG"))]
        missing = sorted(classes.keys() - {path.parent.name for path in paths})
        wanted = f"{root}/{missing[0]}/*.JPEG" if missing else ""
        random.Random(0).shuffle(paths)
    else:
        listed, _ = evaluated_image_names()
        paths = [root / name for name in listed]
        missing = [name for name, path in zip(listed, paths, strict=True) if not path.is_file()]
        wanted = f"{root}/{missing[0]}" if missing else ""
    if missing:
        raise InvalidInput(f"ImageNet is not whole: there is no {wanted}, and {len(missing) - 1} more are missing")
    labels = torch.tensor([classes[path.parent.name] for path in paths])
    return ImageFiles(paths, labels, decoder(preprocessing or DEFAULT_PREPROCESSING))


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
def decoder(preprocessing: Preprocessing) -> Callable[[Path], Tensor]:
    """Return a function from an image file to (3, height, width) uint8, resized and cropped as in RobustBench."""
    # Imported here: the import takes seconds, and other data sets do not need it.
    from torchvision.transforms import InterpolationMode, v2  # noqa: PLC0415

    resize, crop = preprocessing.resize, preprocessing.crop
    steps = [] if resize is None else [v2.Resize(resize, InterpolationMode(preprocessing.interpolation))]
    steps += [] if crop is None else [v2.CenterCrop(crop)]
    transform: Callable[[Image.Image], Tensor] = v2.Compose([*steps, v2.PILToTensor()])
    return partial(_decode, transform)


def _decode(transform: Callable[[Image.Image], Tensor], path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            return transform(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise InvalidInput(f"{path} cannot be read as an image ({error}); fetch it again") from error
