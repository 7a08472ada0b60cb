"""Tensors on disk: safetensors, written whole or not at all, and equal bytes for equal content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gkl.errors import InvalidInput, NoSpaceLeft
from gkl.files import atomic_path, is_disk_full
from gkl.formats.safetensors_header import METADATA_KEY, read_metadata
from gkl.formats.shared_memory import sharing


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors of any device and JSON-compatible metadata.

    A tensor under several names is written under each of them, so that the file loads wherever names are compared;
    views of one memory are written as the numbers that each of them shows.

    Raises:
        NoSpaceLeft: the disk is full; a file that was there before is unharmed.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for names in sharing(on_cpu):
        for name in names[1:]:
            # safetensors refuses two names for one memory.
            on_cpu[name] = on_cpu[name].clone()
    try:
        with atomic_path(path) as temporary:
            save_file(on_cpu, temporary, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    except (SafetensorError, OSError) as error:
        if not is_disk_full(error):
            raise
        size = sum(tensor.nbytes for tensor in on_cpu.values())
        raise NoSpaceLeft(
            f"no space is left in {path.parent} for {path.name} ({size / 2**20:.1f} MiB); free some, then resume"
        ) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the metadata, empty if the file was not written here.

    Raises:
        InvalidInput: the file is missing, damaged or no safetensors.
    """
    metadata = load_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            # Iterated by key: this handle is no mapping.
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InvalidInput(f"{path.name} cannot be read as safetensors ({error})") from error


def load_metadata(path: Path) -> dict[str, Any]:
    """The metadata alone; empty if the file was not written here.

    Raises:
        InvalidInput: the file is missing, damaged or no safetensors.
    """
    # A stranger's certificate and examples come this way too.
    return read_metadata(path)
