"""Recognizes the format of a file of weights without loading it. Free of torch, for the API."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gkl.errors import InvalidInput
from gkl.formats.safetensors_header import read_header
from gkl.formats.torch_archive import check_torch_file

WeightsFormat = Literal["safetensors", "torch"]

_HEAD_BYTES = 512
_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}


def check_weights_file(path: Path, name: str | None = None) -> WeightsFormat:
    """Check a file before anything loads it: everything that can be checked without knowing the architecture.

    Args:
        path: the file.
        name: the file's name in messages; by default its own.

    Raises:
        InvalidInput: the file is neither safetensors nor a state dict of torch.save, or is damaged or malicious.
    """
    found = weights_format(path, name)
    if found == "safetensors":
        if not read_header(path, name):
            raise InvalidInput(f"{name or path.name} holds no tensor; save the tensors of a network")
    else:
        check_torch_file(path, name)
    return found


def weights_format(path: Path, name: str | None = None) -> WeightsFormat:
    """Recognize the format by the first bytes alone. `name` is the file's name in messages; by default its own.

    Raises:
        InvalidInput: the file is neither safetensors nor a file of torch.save.
    """
    name = name or path.name
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    # An 8-byte length, then a JSON object.
    if head[8:9] == b"{":
        return "safetensors"
    # A zip archive, or the pickle of older versions.
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "torch"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InvalidInput(
            f"{name} is an HTML page, not weights: the server sent a web page (a notice, a login, an exceeded "
            "quota) instead of the file; download it again with a browser"
        )
    archive = (
        "tar" if head[257:262] == b"ustar" else next((a for b, a in _ARCHIVES.items() if head.startswith(b)), None)
    )
    if archive is not None:
        raise InvalidInput(f"{name} is a {archive} archive, which is not unpacked here; send the file of weights in it")
    raise InvalidInput(
        f"{name} is neither safetensors nor a state dict of torch.save; save the weights with "
        "safetensors.torch.save_model(model, path)"
    )
