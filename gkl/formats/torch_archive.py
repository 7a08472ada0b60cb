"""Checks a file of torch.save without running any of its code. Free of torch.

A file that passes is an archive of the right form and size whose pickle names only what tensors are made of. The check
gives somebody who sent a wrong file a clear sentence at once. It does not protect against hostile files: every pickle
scanner so far has been evaded. The protection is torch's own unpickler of tensors (`weights_only`), which a worker
runs only in a confined process (`gkl.formats.confinement`).
"""

from __future__ import annotations

import io
import os
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gkl.errors import InvalidInput

MAX_ENTRIES = 20_000
MAX_PICKLE_BYTES = 16 * 1024**2
# Twice what MAX_ENTRIES entries take.
_MAX_INDEX_BYTES = 4 * 1024**2
_MAX_OPCODES = 2_000_000
_ZIP = b"PK\x03\x04"
# The first pickle of the format before torch 1.6, which is not a zip archive.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# That number, a version, sizes of integers, the object, and the names of its storages.
_LEGACY_PICKLES = 5

# The names that plain tensors need, a part of what torch's unpickler of tensors accepts (tests compare the two).
_DTYPES = (
    *("float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
HARMLESS = frozenset(
    {
        "collections OrderedDict",
        "collections Counter",
        "_codecs encode",
        *(f"{builtins} {name}" for builtins in ("builtins", "__builtin__") for name in ("set", "complex", "bytearray")),
        *(f"torch {name}" for name in (*_DTYPES, "Size", "Tensor", "device")),
        *(f"torch {name}Storage" for name in (*_STORAGES, "ComplexFloat", "ComplexDouble")),
        *(f"torch.cuda {name}Storage" for name in _STORAGES),
        "torch.storage UntypedStorage",
        "torch.storage TypedStorage",
        "torch.nn.parameter Parameter",
        "torch._tensor _rebuild_from_type_v2",
        *(f"torch._utils _rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3")),
        *(f"torch._utils _rebuild_{name}" for name in ("parameter", "parameter_with_state")),
    }
)
_OTHER_TENSORS = {
    "_rebuild_sparse_tensor": "sparse tensors; save tensor.to_dense()",
    "_rebuild_qtensor": "quantized tensors; save tensor.dequantize()",
    "_rebuild_meta_tensor_no_storage": "tensors without values, of the meta device; save those with values",
    "_rebuild_nested_tensor": "nested tensors; save plain ones",
}


_WRITE_AGAIN = "fetch it again, or write it again with torch.save(model.state_dict(), path)"
_ONLY_TENSORS = (
    "whole models, scripts and other objects are never loaded: save the weights with "
    "torch.save(model.state_dict(), path), or better as safetensors"
)


class _Fault(Exception):
    """What is wrong, to follow 'cannot be read as a state dict: ', and what to do."""

    def __init__(self, what: str, advice: str = _WRITE_AGAIN) -> None:
        super().__init__(what)
        self.advice = advice


def check_torch_file(path: Path, name: str | None = None) -> None:
    """
    Args:
        path: a file that begins like one of torch.save.
        name: the file's name in messages; by default its own.

    Raises:
        InvalidInput: the file cannot be a state dict of torch.save; the message says what it seems to be instead.
    """
    try:
        with _Bounded(path) as file:
            if file.read(len(_ZIP)) == _ZIP:
                _check_zip(file, path.stat().st_size)
            else:
                file.seek(0)
                file.most = MAX_PICKLE_BYTES
                _check_legacy(io.BytesIO(file.read(MAX_PICKLE_BYTES)))
    except _Fault as fault:
        raise InvalidInput(f"{name or path.name} cannot be read as a state dict: {fault}; {fault.advice}") from fault


class _Bounded(io.FileIO):
    """Limits a single read, whatever length a hostile file makes its reader ask for."""

    most = _MAX_INDEX_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > self.most:
            raise _Fault(f"the index of its archive is longer than the {self.most} bytes that are read here")
        return super().read(size)


# --- the zip archive ---------------------------------------------------------------------------------------------


def _check_zip(file: _Bounded, file_bytes: int) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _refuse_other_archives({entry.filename for entry in entries})
            _check_entries(entries, file_bytes)
            pickled = _pickle_of(entries)
            if pickled.file_size > MAX_PICKLE_BYTES:
                raise _Fault(f"its data.pkl has {pickled.file_size} bytes, more than {MAX_PICKLE_BYTES}")
            file.most = MAX_PICKLE_BYTES
            contents = io.BytesIO(archive.read(pickled))
    # The standard library's errors for malformed archives and for those that need a password.
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OSError,
        EOFError,
        struct.error,
    ) as error:
        raise _Fault(f"its archive is damaged or cut off ({str(error) or type(error).__name__:.200})") from error
    _scan(contents, _MAX_OPCODES)


def _check_entries(entries: list[zipfile.ZipInfo], file_bytes: int) -> None:
    if len(entries) > MAX_ENTRIES:
        raise _Fault(f"its archive has {len(entries)} entries, more than {MAX_ENTRIES}")
    if len({entry.filename for entry in entries}) < len(entries):
        raise _Fault("its archive has an entry twice")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise _Fault(
                f"its archive has the compressed entry {entry.filename!r:.100}, and torch.save compresses nothing"
            )
    # Also refuses entries that share bytes.
    if sum(entry.file_size for entry in entries) > file_bytes:
        raise _Fault("its archive claims to hold more bytes than the file")


def _refuse_other_archives(names: set[str]) -> None:
    # Every entry is in one folder, named like the archive.
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise _Fault("it is a TorchScript program, which is code", _ONLY_TENSORS)
    if {"archive_format", "archive_version"} & inner or "serialized_exported_program.json" in names:
        raise _Fault("it is an exported program (.pt2), which is code", _ONLY_TENSORS)
    if any(name.endswith(".npy") for name in names):
        raise _Fault("it is an archive of NumPy arrays (.npz)", _ONLY_TENSORS)


def _pickle_of(entries: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    inner = {entry.filename.partition("/")[2]: entry for entry in entries}
    if "data.pkl" not in inner:
        raise _Fault("it is a zip archive without data.pkl, which torch.save writes")
    if len({entry.filename.partition("/")[0] for entry in entries}) > 1:
        raise _Fault("it is a zip archive of several folders, and torch.save writes one")
    return inner["data.pkl"]


# --- pickles -----------------------------------------------------------------------------------------------------


def _check_legacy(file: io.BytesIO) -> None:
    left = _MAX_OPCODES
    for number in range(_LEGACY_PICKLES):
        first, used = _scan(file, left)
        left -= used
        if number == 0 and first != _LEGACY_MAGIC:
            raise _Fault("it is a pickle that torch.save did not write", _ONLY_TENSORS)


def _scan(file: io.BytesIO, most: int) -> tuple[Any, int]:
    """Go through one pickle to its end; returns its first value and its number of opcodes."""
    first, steps, texts = None, 0, ["", ""]
    for opcode, argument in _opcodes(file):
        steps += 1
        if steps > most:
            raise _Fault(f"its pickle has more than {_MAX_OPCODES} steps")
        if first is None and opcode != "PROTO":
            first = argument
        if opcode in ("GLOBAL", "INST"):
            _check_global(argument)
        elif opcode == "STACK_GLOBAL":
            # torch.save writes the older GLOBAL instead.
            raise _Fault(f"it holds a pickled {'.'.join(texts)[:100]}, not only tensors", _ONLY_TENSORS)
        elif opcode in ("EXT1", "EXT2", "EXT4"):
            raise _Fault("it holds a pickled object of the extension registry, not only tensors", _ONLY_TENSORS)
        elif isinstance(argument, str):
            texts = [texts[1], argument]
    return first, steps


def _opcodes(file: io.BytesIO) -> Iterator[tuple[str, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(file):
            yield opcode.name, argument
    # Invalid text, a length beyond the end, or an unknown opcode.
    except (ValueError, IndexError, OverflowError, struct.error) as error:
        raise _Fault(f"its pickle is damaged ({str(error) or type(error).__name__:.200})") from error


def _check_global(written: str) -> None:
    if written in HARMLESS:
        return
    module, _, attribute = written.partition(" ")
    if module == "torch._utils" and attribute in _OTHER_TENSORS:
        kind, _, advice = _OTHER_TENSORS[attribute].partition("; ")
        raise _Fault(f"it holds {kind}", advice)
    raise _Fault(f"it holds a pickled {module}.{attribute}"[:150] + ", not only tensors", _ONLY_TENSORS)
