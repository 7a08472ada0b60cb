"""What kind of file somebody calls weights, told from its first bytes. Free of torch: the API asks it too."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gkl.errors import InvalidInput

WeightsFormat = Literal["safetensors", "torch"]

_HEAD_BYTES = 512


def weights_format(path: Path, name: str | None = None) -> WeightsFormat:
    """`name` is what a message calls the file, if not by its own name.

    Raises:
        InvalidInput: it is neither safetensors nor something that torch.save wrote.
    """
    name = name or path.name
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    # An 8-byte length, then a JSON object.
    if head[8:9] == b"{":
        return "safetensors"
    # A zip archive, or the pickle that older versions wrote.
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "torch"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InvalidInput(
            f"{name} is an HTML page, not weights: the download gave a web page (a notice, a login, an exceeded "
            "quota) in place of the file; fetch it again with a browser"
        )
    raise InvalidInput(
        f"{name} is neither safetensors nor a state dict of torch.save; save the weights with "
        "safetensors.torch.save_file(model.state_dict(), path)"
    )
