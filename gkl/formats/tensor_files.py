"""Saves and loads safetensors files: written whole or not at all, with equal bytes for equal content."""

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
    """Write tensors of any device, and JSON-compatible metadata.

    A tensor under several names is written under each of them, so that the file has every name of the network. Views of
    one memory are written as separate tensors.

    Raises:
        NoSpaceLeft: the disk is full; an earlier file at `path` is unharmed.
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
    """Load the tensors, on the CPU, and the metadata; empty for a file that `save_tensors` did not write.

    Raises:
        InvalidInput: the file is missing, damaged or not safetensors.
    """
    metadata = load_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            # The handle is not a mapping: it can only be iterated by keys().
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InvalidInput(f"{path.name} cannot be read as safetensors ({error})") from error


def load_metadata(path: Path) -> dict[str, Any]:
    """Load the metadata alone; empty for a file that `save_tensors` did not write. The file may be untrusted.

    Raises:
        InvalidInput: the file is missing, damaged or not safetensors.
    """
    return read_metadata(path)
