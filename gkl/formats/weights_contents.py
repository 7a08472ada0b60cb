"""Contents of a file of weights without its numbers: each tensor's name, number format and shape. Free of torch.

The API stores them with uploaded weights, and compares them with the network that a job names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from gkl.errors import InvalidInput
from gkl.formats.safetensors_header import TensorHeader, read_header, read_metadata

CONVERTED = "gkl-converted-weights-2"
"""`format` in the metadata of a safetensors file that was converted from a state dict of torch.save."""


class Described(NamedTuple):
    """A tensor without its numbers."""

    dtype: str
    """Number format in the notation of its file: 'torch.float16', 'F16'."""
    shape: tuple[int, ...]
    is_floating: bool
    is_whole: bool
    """Whether its number format is an integer one."""

    @classmethod
    def of_torch(cls, dtype: str, shape: tuple[int, ...]) -> Self:
        """
        >>> Described.of_torch("torch.bfloat16", (3, 2)).is_floating, Described.of_torch("torch.bool", ()).is_whole
        (True, False)
        """
        is_floating = "float" in dtype
        is_whole = not is_floating and "complex" not in dtype and dtype != "torch.bool"
        return cls(dtype, shape, is_floating, is_whole)

    @classmethod
    def of_safetensors(cls, dtype: str, shape: tuple[int, ...]) -> Self:
        """
        >>> Described.of_safetensors("BF16", (3, 2)).is_floating, Described.of_safetensors("BOOL", ()).is_whole
        (True, False)
        """
        return cls(dtype, shape, "F" in dtype, dtype[0] in "IU")


@dataclass(frozen=True)
class Contents:
    """The tensors of a file of weights."""

    name: str
    """The file's name in messages."""
    containers: Mapping[str, Mapping[str, Described]]
    """A dictionary's place in the file ('' for the file itself, 'state_dict') -> its tensors by name."""


def safetensors_contents(path: Path, name: str | None = None) -> Contents:
    """Read the contents of a safetensors file, converted or not. Only the header is read.

    Args:
        path: the file.
        name: the file's name in messages; by default its own.

    Raises:
        InvalidInput: the file is damaged or not safetensors.
    """
    header, metadata = read_header(path, name), read_metadata(path, name)
    name = name or path.name
    if metadata.get("format") == CONVERTED:
        return Contents(name, conversion(header, metadata, name).containers)
    return Contents(name, {"": {each: described(tensor) for each, tensor in header.items()}})


@dataclass(frozen=True)
class Conversion:
    """How a safetensors file, which has one flat list of names, stores the dictionaries of a state dict."""

    places: list[str]
    stored: Mapping[str, str]
    """'<number of the dictionary>/<name>' -> the tensor's name in the file."""
    containers: Mapping[str, Mapping[str, Described]]


def conversion(header: Mapping[str, TensorHeader], metadata: Mapping[str, Any], name: str) -> Conversion:
    """
    Raises:
        InvalidInput: the conversion's metadata is damaged.
    """
    try:
        places, same = [str(place) for place in metadata["containers"]], dict(metadata["same"])
        stored = {each: each for each in header} | {str(each): str(first) for each, first in same.items()}
        containers: dict[str, dict[str, Described]] = {place: {} for place in places}
        for each, first in sorted(stored.items()):
            number, _, own = each.partition("/")
            containers[places[int(number)]][own] = described(header[first])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(
            f"{name} is damaged: it is not a complete conversion of a state dict; send it again"
        ) from error
    return Conversion(places, stored, containers)


def described(tensor: TensorHeader) -> Described:
    return Described.of_safetensors(tensor.dtype, tensor.shape)
