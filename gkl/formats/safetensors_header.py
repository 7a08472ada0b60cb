"""The header of a safetensors file, read by ourselves before anything else reads the file. Free of torch.

A file from a stranger is believed in nothing: whatever passes here is bounded by the size of the file itself.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from gkl.errors import InvalidInput

MAX_HEADER_BYTES = 8 * 1024**2
MAX_TENSORS = 10_000

_MAX_DIMENSIONS = 16
# Beyond it no library counts elements without overflow.
_MAX_ELEMENTS = 2**62
# Metadata are few: those of this project are one.
_MAX_METADATA = 1_000
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
# safetensors writes the entries of its metadata in random order. One entry that holds all the rest as JSON
# keeps the file, and so its sha256, the same for the same content.
METADATA_KEY = "gklbench"
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


@dataclass(frozen=True)
class TensorHeader:
    """One tensor, as the header describes it."""

    dtype: str
    """In safetensors' words: 'F32', 'I64'."""
    shape: tuple[int, ...]
    begin: int
    """Its first byte, counted from the end of the header."""
    end: int
    """The byte after its last."""

    @property
    def is_floating(self) -> bool:
        return "F" in self.dtype


class _Fault(Exception):
    """What is wrong with a header, in the middle of a sentence."""


def read_header(path: Path, name: str | None = None) -> dict[str, TensorHeader]:
    """Every tensor of the file, by name. Reads the header alone, and proves that the rest is what it says.

    Each tensor has a known number format and as many bytes as its shape needs; together they fill the file, without
    holes and overlaps.

    Args:
        path: the file.
        name: what a message calls it, if not by its own name.

    Raises:
        InvalidInput: it is not so, or the file is missing.
    """
    header, data_bytes = _read(path, name or path.name)
    return _checked(header, data_bytes, name or path.name)


def read_metadata(path: Path, name: str | None = None) -> dict[str, Any]:
    """What a file that was written here says of itself; empty for one from elsewhere. Its header is checked as a whole.

    Raises:
        InvalidInput: see `read_header`; or its metadata are no JSON object.
    """
    name = name or path.name
    header, data_bytes = _read(path, name)
    _checked(header, data_bytes, name)
    try:
        found = json.loads(header.get("__metadata__", {}).get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} cannot be read as safetensors ({error})") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{name} cannot be read as safetensors (its metadata are no JSON object)")
    return found


def _checked(header: Mapping[str, Any], data_bytes: int, name: str) -> dict[str, TensorHeader]:
    try:
        return _tensors(header, data_bytes)
    except _Fault as fault:
        raise _unreadable(name, fault) from fault


def _read(path: Path, name: str) -> tuple[Mapping[str, Any], int]:
    """The header, parsed, and how many bytes of numbers follow it."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = _header_bytes(file.read(8), size)
            header = file.read(length)
        return _parsed(header), size - 8 - length
    except _Fault as fault:
        raise _unreadable(name, fault) from fault
    except OSError as error:
        raise InvalidInput(f"{name} cannot be read as safetensors ({error.strerror})") from error


def _unreadable(name: str, fault: _Fault) -> InvalidInput:
    return InvalidInput(
        f"{name} cannot be read as safetensors: {fault}; write it again with safetensors.torch.save_file"
    )


def _header_bytes(prefix: bytes, file_bytes: int) -> int:
    if len(prefix) < 8:
        raise _Fault(f"it has {file_bytes} bytes, less than the length of a header takes")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise _Fault(f"its header is said to have {length} bytes, more than the {MAX_HEADER_BYTES} that are read here")
    if length > file_bytes - 8:
        raise _Fault(f"its header is said to have {length} bytes, and the whole file has {file_bytes}")
    return length


def _parsed(raw: bytes) -> Mapping[str, Any]:
    """The JSON object, of which no part is larger than it can be in a real header."""
    if not raw.startswith(b"{"):
        raise _Fault("its header is no JSON object")
    # Millions of tiny lists would take twenty times the header's size in memory: counted before they are made.
    bare = _STRING.sub(b"", raw)
    most = {b"{": MAX_TENSORS + 2, b"[": 2 * MAX_TENSORS, b",": (_MAX_DIMENSIONS + 4) * MAX_TENSORS + _MAX_METADATA}
    if any(bare.count(mark) > count for mark, count in most.items()):
        raise _Fault(f"its header describes more than {MAX_TENSORS} tensors, or other things than tensors")
    try:
        header: Mapping[str, Any] = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_int=_whole_number,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except UnicodeDecodeError as error:
        raise _Fault(f"its header is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise _Fault("its header is nested too deeply") from error
    except ValueError as error:
        raise _Fault(f"its header is not JSON ({error!s:.200})") from error
    # It begins like an object.
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _Fault("a name is in its header twice")
    for key in values:
        _check_text(key)
    return values


def _whole_number(text: str) -> int:
    # Its length first: a number of a million digits takes seconds to read.
    if not text.isdigit() or len(text) > 19:
        raise _Fault(f"its header has the number {text[:30]}, which is no size")
    return int(text)


def _no_number(text: str) -> NoReturn:
    raise _Fault(f"its header has the number {text[:30]}, which is no size")


def _check_text(text: str) -> None:
    # JSON can escape what no other library reads.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Fault("a text in its header has half a character") from error


def _tensors(header: Mapping[str, Any], data_bytes: int) -> dict[str, TensorHeader]:
    found = {}
    for name, value in header.items():
        if name == "__metadata__":
            _check_metadata(value)
        else:
            found[name] = _tensor(name, value)
    if len(found) > MAX_TENSORS:
        raise _Fault(f"it holds {len(found)} tensors, more than {MAX_TENSORS}")
    in_order = sorted(found.items(), key=lambda item: (item[1].begin, item[1].end))
    for (before, one), (after, next_one) in pairwise(in_order):
        if next_one.begin < one.end:
            raise _Fault(f"its tensors {before!r:.100} and {after!r:.100} overlap")
        if next_one.begin > one.end:
            raise _Fault(f"{next_one.begin - one.end} bytes before tensor {after!r:.100} belong to none")
    first, last = (in_order[0][1].begin, in_order[-1][1].end) if in_order else (0, 0)
    if first != 0 or last != data_bytes:
        raise _Fault(f"its tensors take the bytes {first} to {last} of {data_bytes}; was it cut off?")
    return found


def _check_metadata(value: object) -> None:
    if not isinstance(value, dict) or len(value) > _MAX_METADATA:
        raise _Fault("its __metadata__ is no small object of texts")
    for text in value.values():
        if not isinstance(text, str):
            raise _Fault("its __metadata__ holds something else than texts")
        _check_text(text)


def _tensor(name: str, value: object) -> TensorHeader:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Fault(f"its tensor {name!r:.100} is not described by dtype, shape and data_offsets alone")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _Fault(f"its tensor {name!r:.100} has the unknown number format {dtype!r:.30}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _Fault(f"its tensor {name!r:.100} has {shape!r:.60} as its shape")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _Fault(f"its tensor {name!r:.100} has {offsets!r:.60} in place of where it begins and ends")
    begin, end = offsets
    wanted = _ITEM_BYTES[dtype]
    for size in shape:
        wanted *= size
        if wanted > _MAX_ELEMENTS:
            raise _Fault(f"its tensor {name!r:.100} has the shape {shape!r:.60}, which nothing can hold")
    if end - begin != wanted:
        raise _Fault(f"its tensor {name!r:.100} has {end - begin} bytes, but {dtype} {shape!r:.60} takes {wanted}")
    return TensorHeader(dtype, tuple(shape), begin, end)


def _are_sizes(value: object) -> bool:
    # Not isinstance: true is an int too.
    return isinstance(value, list) and all(type(size) is int for size in value)
