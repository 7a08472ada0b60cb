"""A file of weights, opened: what tensors it holds and where, and their numbers when they are asked for."""

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
    """With the numbers of its tensors."""

    read: Callable[[str, Iterable[str]], dict[str, Tensor]]
    """Where, and names -> those tensors, on the CPU."""


def describe(tensor: Tensor) -> Described:
    return Described.of_torch(str(tensor.dtype), tuple(tensor.shape))


def open_weights(path: Path) -> WeightsFile:
    """
    Raises:
        InvalidInput: it is neither safetensors nor what torch.save wrote, damaged, or holds no tensors.
        OutOfMemory: it takes more memory than there is.
    """
    if check_weights_file(path) == "torch":
        return _of_torch(path)
    metadata = read_metadata(path)
    if metadata.get("format") == CONVERTED:
        return _of_converted(path, metadata)
    containers = safetensors_contents(path).containers
    return WeightsFile(path.name, containers, lambda _, names: _read(path, {name: name for name in names}))


def convert_state_dict(source: Path, target: Path) -> None:
    """Write everything in a file of torch.save that could be a network as one safetensors file.

    Which of several networks an evaluation means is its spec's to say, so that all of them are kept.

    Raises:
        InvalidInput, OutOfMemory: see `read_containers`.
        NoSpaceLeft: the disk is full.
    """
    containers = read_containers(source)
    places = list(containers)
    tensors = {f"{places.index(where)}/{name}": t for where in places for name, t in containers[where].items()}
    # One tensor under many names is written once: else a small file could become a large one.
    same = {name: names[0] for names in aliases(tensors) for name in names[1:]}
    for name in same:
        del tensors[name]
    for name, tensor in tensors.items():
        # Each in a memory of its own, one after the other: a view would keep the whole of what it shows a part of.
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
    """Names -> tensors, of which each has a name in the file; what has one name there is read once."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {stored: file.get_tensor(stored) for stored in set(wanted.values())}
    except (SafetensorError, OSError) as error:
        raise InvalidInput(f"{path.name} cannot be read as safetensors ({error})") from error
    return {name: tensors[stored] for name, stored in wanted.items()}
