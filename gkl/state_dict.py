"""State dicts as torch.save writes them, read by torch's unpickler that builds tensors only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gkl.device import is_out_of_memory
from gkl.errors import InvalidInput, OutOfMemory

_T = TypeVar("_T")
# Under which scripts store the network in a dictionary with other things, in the order in which they are looked for.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# One in the other; a dictionary can be in itself.
_MAX_WRAPPERS = 4
# What DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors, on the CPU.

    They may lie in a dictionary under 'state_dict', 'model_state_dict', 'model' or 'net'.

    Raises:
        InvalidInput: the file is damaged, or holds more or less than plain tensors.
        OutOfMemory: it takes more memory than there is.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged or hostile file can raise anything.
        if isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error):
            raise OutOfMemory(f"{path.name} takes more memory to be read than there is") from error
        # What torch says before is advice on how to run the file's code.
        said = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
        reason = said.splitlines()[0] if said else type(error).__name__
        raise InvalidInput(
            f"{path.name} cannot be read as a state dict ({reason:.300}); a whole model or a script is never loaded: "
            "save torch.save(model.state_dict(), path), or better safetensors"
        ) from error
    return _state_dict(content, path.name)


def _state_dict(content: Any, name: str) -> dict[str, Tensor]:
    for _ in range(_MAX_WRAPPERS):
        found = [content[key] for key in _WRAPPERS if isinstance(content, Mapping) and key in content]
        content = next((each for each in found if isinstance(each, Mapping)), content)
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    ):
        raise InvalidInput(
            f"{name} holds no state dict (names and tensors); save it with torch.save(model.state_dict(), path)"
        )
    for key, value in content.items():
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise InvalidInput(
                f"tensor {key!r:.100} in {name} is sparse, quantized or without values; save it as a plain tensor"
            )
    return without_prefixes(content)


def without_prefixes(named: Mapping[str, _T]) -> dict[str, _T]:
    """Names as the network itself has them, without what DataParallel and torch.compile put before all of them."""
    found = dict(named)
    while prefix := next((p for p in _PREFIXES if found and all(key.startswith(p) for key in found)), None):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found
