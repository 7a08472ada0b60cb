"""Turns the caller's images and labels, in any of several forms, into an `ImageSet`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gkl.catalog import DATASETS, unknown_name_message
from gkl.catalog.preprocessing import Preprocessing
from gkl.data import ImageSet
from gkl.data.loading import load_test
from gkl.errors import InvalidInput
from gkl.library.folders import datasets_folder

Data: TypeAlias = "str | ImageSet | tuple[Any, Any] | Iterable[Any]"
"""A data set's name; a pair of images and labels; a DataLoader of batches; or a Dataset of single images."""

_CHANNELS = (1, 3, 4)


def image_set(
    data: Data,
    *,
    num_points: int | None,
    datasets_dir: Path | str | None,
    preprocessing: Preprocessing | None = None,
) -> tuple[ImageSet, str | None]:
    """
    Args:
        data: a name of `gkl.catalog.DATASETS`, a pair of arrays, a DataLoader or a Dataset. Images (N, channels,
            height, width) or (N, height, width, channels), as uint8 or as floats in [0, 1]; labels (N,).
        num_points: how many points to take, from the first on; None takes all.
        datasets_dir: the folder with the data sets, each in a subfolder of its name; by default the environment
            variable GKLBENCH_DATASETS_DIR, else the service's own folder.
        preprocessing: how ImageNet's photographs are resized and cropped, if `data` is 'imagenet'.

    Returns:
        A copy of the images with channels first, so that the caller's images are never written to; and the data set's
        name, if `data` is one.

    Raises:
        InvalidInput: `data` is none of these, or has fewer than `num_points` points.
    """
    if num_points is not None and num_points < 1:
        raise InvalidInput(f"num_points is {num_points}; take at least 1, or leave it out for all")
    name = None
    if isinstance(data, str):
        if data not in DATASETS:
            raise InvalidInput(unknown_name_message("data set", data, DATASETS))
        found, name = load_test(data, datasets_folder(datasets_dir), num_points, preprocessing), data
    elif isinstance(data, ImageSet):
        found = ImageSet(data.images.clone(), data.labels.clone())
    elif isinstance(data, tuple | list) and len(data) == 2:
        found = ImageSet(channels_first(_tensor(data[0], "images")), _tensor(data[1], "labels"))
    else:
        found = _collected(data, num_points)
    if num_points is not None and num_points > len(found.images):
        raise InvalidInput(f"num_points is {num_points}, and there are {len(found.images)} images")
    return found.first(num_points), name


def channels_first(images: Tensor) -> Tensor:
    """(N, height, width, channels) -> (N, channels, height, width), if only the last axis can be the channels.

    Returns other images unchanged.
    """
    if images.dim() == 4 and images.shape[1] not in _CHANNELS and images.shape[3] in _CHANNELS:
        return images.permute(0, 3, 1, 2)
    return images


def _tensor(given: Any, what: str) -> Tensor:
    """Copy to the CPU as a tensor; `what` names it in messages."""
    if isinstance(given, Tensor):
        return given.detach().to("cpu", copy=True)
    if isinstance(given, Sequence) and given and isinstance(given[0], Tensor):
        try:
            return torch.stack([each.detach().cpu() for each in given])
        except RuntimeError as error:
            raise InvalidInput(f"the {what} are a list of tensors of several shapes; resize them to one") from error
    try:
        array = np.array(given)
    except ValueError as error:
        raise InvalidInput(f"the {what} are a list of several shapes; resize them to one") from error
    try:
        # torch does not support views with negative strides, such as flipped images.
        return torch.from_numpy(np.ascontiguousarray(array))
    except TypeError as error:
        raise InvalidInput(
            f"the {what} are a {type(given).__name__} of {array.dtype}; give a tensor or an array of numbers"
        ) from error


def _collected(data: Any, num_points: int | None) -> ImageSet:
    """Collect the first `num_points` points of a DataLoader or a Dataset."""
    if not isinstance(data, Iterable) and not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise InvalidInput(
            f"the data is a {type(data).__name__}; give images and labels as a pair, a DataLoader, or one of "
            f"{', '.join(DATASETS)}"
        )
    images, labels, count = [], [], 0
    # A Dataset may lack __iter__. Iterating it by index would read beyond its end, as it need not raise IndexError.
    items = data if hasattr(data, "__iter__") else (data[i] for i in range(len(data)))
    for item in items:
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise InvalidInput(f"the data yields {_described(item)}; it must yield images with their labels")
        batch, wanted = _tensor(item[0], "images"), _tensor(item[1], "labels")
        if batch.dim() == 3:
            batch, wanted = batch[None], wanted.reshape(1)
        images.append(channels_first(batch))
        labels.append(wanted)
        count += len(batch)
        if num_points is not None and count >= num_points:
            break
    if not images:
        raise InvalidInput("the data holds no image")
    if len({tuple(batch.shape[1:]) for batch in images}) > 1:
        raise InvalidInput("the data yields images of several shapes; resize them to one")
    return ImageSet(torch.cat(images), torch.cat(labels))


def _described(item: Any) -> str:
    return f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, tuple | list | dict) else "")
