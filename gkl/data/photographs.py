"""Photographs in files of their own or within tar archives, opened with Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from gkl.errors import InvalidInput


class ShardMember(NamedTuple):
    """An image file within an uncompressed tar archive."""

    shard: Path
    name: str
    """<class>/<file>, such as 'n01440764/n01440764_18.JPEG'."""
    offset: int
    """Position of its first byte in the archive."""
    size: int
    """In bytes."""

    def __str__(self) -> str:
        return f"{self.name} in {self.shard}"


Photograph = Path | ShardMember


def name_and_size(photograph: Photograph) -> tuple[str, int]:
    """<class>/<file>, and the size in bytes."""
    if isinstance(photograph, ShardMember):
        return photograph.name, photograph.size
    return f"{photograph.parent.name}/{photograph.name}", photograph.stat().st_size


def read_rgb(photograph: Photograph) -> Image.Image:
    """Read a photograph as an RGB image.

    Raises:
        InvalidInput: it is missing or damaged.
    """
    try:
        with Image.open(_file(photograph)) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise InvalidInput(f"{photograph} cannot be read as an image ({error}); fetch it again") from error


def _file(photograph: Photograph) -> Path | io.BytesIO:
    if isinstance(photograph, Path):
        return photograph
    with photograph.shard.open("rb", buffering=0) as shard:
        shard.seek(photograph.offset)
        content = shard.read(photograph.size)
    if len(content) < photograph.size:
        raise OSError("the archive ends within it")
    return io.BytesIO(content)
