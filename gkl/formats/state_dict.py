"""Reads a file of torch.save with `weights_only=True`, and finds the named tensors in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkl.device import is_out_of_memory
from gkl.errors import InvalidInput, OutOfMemory

# More than any training script nests; a limit is needed, since a dictionary can contain itself.
_MAX_DEPTH, _MAX_PARTS = 8, 10_000
# Key that every state dict of torch's optimizers has.
_OF_AN_OPTIMIZER = "param_groups"


def read_containers(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read every dictionary or list in the file that holds tensors: place -> name -> tensor on the CPU.

    The outermost one is at ''; one in it under 'state_dict' at 'state_dict', one in that under 'ema' at
    'state_dict.ema'. Everything but tensors is left out, and so are the states of optimizers.

    Raises:
        InvalidInput: the file is damaged, or holds no network's tensors, or holds tensors that are not plain.
        OutOfMemory: the file needs more memory than there is.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged or hostile file can raise anything.
        if isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error):
            raise OutOfMemory(f"reading {path.name} takes more memory than there is") from error
        # The text before is torch's advice on how to run the file's code.
        fault = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
        reason = fault.splitlines()[0] if fault else type(error).__name__
        raise InvalidInput(
            f"{path.name} cannot be read as a state dict ({reason:.300}); whole models and scripts are never loaded: "
            "save the weights with torch.save(model.state_dict(), path), or better as safetensors"
        ) from error
    found: dict[str, dict[str, Tensor]] = {}
    is_network = False
    for number, (where, part) in enumerate(_parts(content, "", 0)):
        if number >= _MAX_PARTS:
            raise InvalidInput(
                f"{path.name} has more than {_MAX_PARTS} dictionaries and lists inside one another; save the network "
                "alone, with torch.save(model.state_dict(), path)"
            )
        tensors = {key: value for key, value in part if isinstance(value, Tensor) and isinstance(key, str)}
        if tensors:
            _check_plain(tensors, path.name)
            # A tensor among other things may be the best accuracy, say; weights have two dimensions or more.
            is_network |= len(tensors) == len(part) or any(tensor.dim() > 1 for tensor in tensors.values())
            # Two dictionaries with the same place, as in {'a': {'b': …}, 'a.b': …}, are both kept.
            found[next(place for place in _places(where) if place not in found)] = tensors
    if not is_network:
        raise InvalidInput(
            f"{path.name} holds no state dict (names and tensors); save it with torch.save(model.state_dict(), path)"
        )
    return found


def _parts(content: Any, where: str, depth: int) -> Iterator[tuple[str, list[tuple[Any, Any]]]]:
    """Yield the content and every dictionary and list in it: its place and its items."""
    if isinstance(content, Mapping):
        if _OF_AN_OPTIMIZER in content:
            return
        items = [(key, value) for key, value in content.items() if type(key) in (str, int)]
    elif isinstance(content, list | tuple):
        items = list(enumerate(content))
    else:
        return
    yield where, items
    if depth < _MAX_DEPTH:
        for key, value in items:
            yield from _parts(value, f"{where}.{key}" if where else str(key), depth + 1)


def _places(where: str) -> Iterator[str]:
    yield where
    for number in range(2, _MAX_PARTS + 2):
        yield f"{where} ({number})"


def _check_plain(tensors: Mapping[str, Tensor], file: str) -> None:
    for name, value in tensors.items():
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise InvalidInput(
                f"tensor {name!r:.100} in {file} is sparse, quantized or without values; save it as a plain tensor"
            )
        if value.is_complex():
            raise InvalidInput(
                f"tensor {name!r:.100} in {file} is {value.dtype}, which safetensors cannot hold; save real numbers"
            )
