"""Reads the header of a safetensors file: which tensors it holds, without their values. Free of torch.

safetensors' own parser reads the header here and when the file is loaded later, so the two cannot disagree. The parser
checks that every tensor has as many bytes as its shape needs and that the tensors fill the file without holes or
overlaps. It needs up to twelve times the header's length in memory, so this module limits that length first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gkl.errors import InvalidInput

MAX_HEADER_BYTES = 8 * 1024**2
MAX_TENSORS = 10_000

_MAX_DIMENSIONS = 16
# The number formats that torch supports.
_NUMBER_FORMATS = frozenset(
    ["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64", "I64", "F64"]
)
# The parser's messages for a truncated file.
_CUT_OFF = ("invalid header length", "incomplete metadata, file not fully covered")
# safetensors writes the entries of its metadata in random order. One entry that holds all the rest as JSON
# keeps the file, and so its sha256, the same for the same content.
METADATA_KEY = "gklbench"


@dataclass(frozen=True)
class TensorHeader:
    """A tensor's description in the header."""

    dtype: str
    """Number format in safetensors' notation: 'F32', 'I64'."""
    shape: tuple[int, ...]

    @property
    def is_floating(self) -> bool:
        return "F" in self.dtype


def read_header(path: Path, name: str | None = None) -> dict[str, TensorHeader]:
    """Read the description of every tensor in the file: name -> description.

    Args:
        path: the file.
        name: the file's name in messages; by default its own.

    Raises:
        InvalidInput: the file is missing or not safetensors, or has more tensors or dimensions than any network, or a
            number format that torch does not support.
    """
    name = name or path.name
    with _opened(path, name) as file:
        return _tensors(file, name)


def read_metadata(path: Path, name: str | None = None) -> dict[str, Any]:
    """Read the metadata that `save_tensors` wrote; empty for a file from elsewhere. Checks the whole header too.

    Raises:
        InvalidInput: see `read_header`; or the metadata is not a JSON object.
    """
    name = name or path.name
    with _opened(path, name) as file:
        _tensors(file, name)
        metadata: Mapping[str, str] = file.metadata() or {}
    try:
        found = json.loads(metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} cannot be read as safetensors ({error})") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{name} cannot be read as safetensors (its metadata is not a JSON object)")
    return found


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Any]:
    try:
        _check_header_length(path, name)
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        # The message begins with a constant prefix and may quote names of any length.
        fault = str(error).removeprefix("Error while deserializing header: ")
        if fault in _CUT_OFF:
            fault = "its length differs from what its header says; was it cut off?"
        raise _unreadable(name, fault if len(fault) <= 200 else f"{fault[:200]}...") from error
    except OSError as error:
        raise InvalidInput(f"{name} cannot be read as safetensors ({error.strerror})") from error


def _check_header_length(path: Path, name: str) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        fault = f"its header claims {length} bytes, and at most {MAX_HEADER_BYTES} are read here"
        raise _unreadable(name, fault)


def _tensors(file: Any, name: str) -> dict[str, TensorHeader]:
    names = file.keys()
    if len(names) > MAX_TENSORS:
        raise _unreadable(name, f"it holds {len(names)} tensors, more than {MAX_TENSORS}")
    found = {}
    for tensor in names:
        part = file.get_slice(tensor)
        dtype, shape = part.get_dtype(), tuple(part.get_shape())
        if dtype not in _NUMBER_FORMATS:
            raise _unreadable(name, f"its tensor {tensor!r:.100} has the number format {dtype}, which torch lacks")
        if len(shape) > _MAX_DIMENSIONS:
            raise _unreadable(name, f"its tensor {tensor!r:.100} has {len(shape)} dimensions, more than any network's")
        found[tensor] = TensorHeader(dtype, shape)
    return found


def _unreadable(name: str, fault: str) -> InvalidInput:
    return InvalidInput(
        f"{name} cannot be read as safetensors: {fault}; write it again with safetensors.torch.save_file"
    )
