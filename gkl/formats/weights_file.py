"""Opens a file of weights: lists its tensors, and reads their numbers on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gkl.errors import InvalidInput
from gkl.formats.safetensors_header import read_header, read_metadata
from gkl.formats.shared_memory import aliases
from gkl.formats.state_dict import read_containers
from gkl.formats.tensor_files import save_tensors
from gkl.formats.weights_contents import CONVERTED, Contents, Described, conversion, safetensors_contents
from gkl.formats.weights_format import check_weights_file


@dataclass(frozen=True)
class WeightsFile(Contents):
    """An open file of weights."""

    read: Callable[[str, Iterable[str]], dict[str, Tensor]]
    """(place of the dictionary, names) -> these tensors by name, on the CPU."""


def describe(tensor: Tensor) -> Described:
    return Described.of_torch(str(tensor.dtype), tuple(tensor.shape))


def open_weights(path: Path) -> WeightsFile:
    """
    Raises:
        InvalidInput: the file is neither safetensors nor a file of torch.save, is damaged, or holds no tensors.
        OutOfMemory: the file needs more memory than there is.
    """
    if check_weights_file(path) == "torch":
        return _of_torch(path)
    metadata = read_metadata(path)
    if metadata.get("format") == CONVERTED:
        return _of_converted(path, metadata)
    containers = safetensors_contents(path).containers
    return WeightsFile(path.name, containers, lambda _, names: _read(path, {name: name for name in names}))


def convert_state_dict(source: Path, target: Path) -> None:
    """Write all tensors of a file of torch.save, with their dictionaries, into one safetensors file.

    Several networks are all kept: the spec of an evaluation says which one it means.

    Raises:
        InvalidInput, OutOfMemory: see `read_containers`.
        NoSpaceLeft: the disk is full.
    """
    containers = read_containers(source)
    places = list(containers)
    tensors = {f"{places.index(where)}/{name}": t for where in places for name, t in containers[where].items()}
    # A tensor under several names is written once: otherwise a small file could become a large one.
    same = {name: names[0] for names in aliases(tensors) for name in names[1:]}
    for name in same:
        del tensors[name]
    for name, tensor in tensors.items():
        # Copied one after the other into memory of their own: a view would keep its whole storage.
        tensors[name] = tensor.detach().resolve_conj().resolve_neg().contiguous().clone()
    save_tensors(target, tensors, {"format": CONVERTED, "containers": places, "same": same})


def _of_torch(path: Path) -> WeightsFile:
    containers = read_containers(path)
    described = {
        where: {name: describe(tensor) for name, tensor in tensors.items()} for where, tensors in containers.items()
    }
    return WeightsFile(path.name, described, lambda where, names: {name: containers[where][name] for name in names})


def _of_converted(path: Path, metadata: Mapping[str, Any]) -> WeightsFile:
    found = conversion(read_header(path), metadata, path.name)

    def read(where: str, names: Iterable[str]) -> dict[str, Tensor]:
        number = found.places.index(where)
        return _read(path, {name: found.stored[f"{number}/{name}"] for name in names})

    return WeightsFile(path.name, found.containers, read)


def _read(path: Path, wanted: Mapping[str, str]) -> dict[str, Tensor]:
    """Read tensors by the names that `wanted` maps to names in the file; each stored tensor is read once."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {stored: file.get_tensor(stored) for stored in set(wanted.values())}
    except (SafetensorError, OSError) as error:
        raise InvalidInput(f"{path.name} cannot be read as safetensors ({error})") from error
    return {name: tensors[stored] for name, stored in wanted.items()}
