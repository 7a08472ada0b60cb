"""Loads a file of weights into a network, in any of the layouts that training scripts commonly write."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gkl.catalog import DATASETS
from gkl.catalog.zoo import ZOO
from gkl.errors import InvalidInput
from gkl.files import sha256_of
from gkl.formats.layouts import (
    Expected,
    Place,
    checked_surroundings,
    fitting_places,
    has_other_networks,
    unseen_in_front,
)
from gkl.formats.shared_memory import aliases
from gkl.formats.weights_file import WeightsFile, describe, open_weights
from gkl.models.copying import copy_into
from gkl.models.normalization import Normalization, normalization_in_front, with_normalization
from gkl.models.registry import build_model
from gkl.models.robustbench import load_published, published_files

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights, and notes on how they were loaded."""

    network: nn.Module
    weights_key: str | None = None
    """Which network of the file it is; None if the file holds no other weights."""
    notes: tuple[str, ...] = ()
    """A sentence for everything that was done with the file's tensors besides copying them."""


def read_weights(path: Path, weights_key: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a file that holds one network, on the CPU, by their names in the file.

    Args:
        path: a safetensors file, or a state dict of torch.save.
        weights_key: the dictionary of the file that has them, such as 'state_dict'; needed if there are several.

    Raises:
        InvalidInput: the file is damaged or of another kind, or holds several networks and the key names none of them.
    """
    file = open_weights(path)
    found = [where for where, tensors in file.containers.items() if any(len(t.shape) > 1 for t in tensors.values())]
    if weights_key is not None:
        found = [where for where in found if where == weights_key]
    if len(found) != 1:
        held = ", ".join(repr(where or ".") for where in file.containers)
        raise InvalidInput(f"{path.name} holds tensors in {held:.300}; name one of these in weights_key")
    return file.read(found[0], file.containers[found[0]])


def load_weights(model: nn.Module, path: Path, weights_key: str | None = None) -> None:
    """Load a file's weights into a network; the file must have the network's names and shapes.

    Ignores prefixes such as DataParallel's, searches nested dictionaries, and skips everything that is not part of a
    network, such as an optimizer. Converts other floating-point formats, such as float16, to the network's. BatchNorm's
    count of batches may be missing, as in files of old torch versions.

    Args:
        model: the network.
        path: a safetensors file, or a state dict of torch.save.
        weights_key: which network of the file to load, such as 'state_dict_ema'; needed if several fit.

    Raises:
        InvalidInput: the file is unreadable or of another network (the message says the first difference); several
            networks in it fit (the message lists them); or it has a normalization layer in front of the network, which
            only `load_model` can load.
    """
    loaded = _load_into(model, path, weights_key)
    if loaded.normalization is not None and not loaded.normalization.is_identity:
        raise InvalidInput(
            f"{path.name} has a normalization layer ({loaded.normalization}) in front of the network, for which the "
            "network has no place; load it with load_model, which adds one"
        )


def load_model(
    architecture: str, dataset: str, weights: Path | None, models_dir: Path | None, weights_key: str | None = None
) -> nn.Module:
    """Build a network and load its weights: those of a file, or, without a file, those published in RobustBench's zoo.

    Args:
        architecture: a name from the catalog.
        dataset: the data set for whose images and classes the network is built.
        weights: the file; None for the published weights of an architecture of the zoo.
        models_dir: where RobustBench keeps published weights; only needed without a file.
        weights_key: which network of the file to load; needed if several fit.

    Raises:
        InvalidInput: the file is unreadable, of another network, or missing, or holds several networks that fit.
    """
    return read_model(architecture, dataset, weights, models_dir, weights_key).network


def read_model(
    architecture: str, dataset: str, weights: Path | None, models_dir: Path | None, weights_key: str | None = None
) -> LoadedModel:
    """Like `load_model`, but also return notes on how the weights were loaded."""
    if weights is None:
        if architecture not in ZOO:
            raise InvalidInput(f"{architecture} has no published weights; name the file with its weights")
        if models_dir is None:
            raise InvalidInput("published weights need a folder of models; name one, or give a file of weights")
        return LoadedModel(load_published(architecture, models_dir))
    model = build_model(architecture, dataset)
    loaded = _load_into(model, weights, weights_key)
    notes = list(loaded.notes)
    network = model
    if loaded.normalization is not None and not loaded.normalization.is_identity:
        try:
            network, note = with_normalization(model, loaded.normalization, DATASETS[dataset].image_shape)
        except InvalidInput as error:
            raise InvalidInput(f"{weights.name} cannot be loaded into {architecture}: {error}") from error
        notes.append(note)
    for note in notes:
        _log.info("%s: %s", weights.name, note)
    return LoadedModel(network, loaded.weights_key, tuple(notes))


def weights_sha256(architecture: str, weights: Path | None, models_dir: Path | None) -> str:
    """Return the sha256 of the weights' file.

    The weights of a published ensemble are several files; their hash is the sha256 of the hashes, joined by newlines.
    """
    if weights is not None:
        return sha256_of(weights)
    assert models_dir is not None, "load_model comes first"
    hashes = [sha256_of(file) for file in published_files(architecture, models_dir)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


# --- which tensors -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Loaded:
    weights_key: str | None
    normalization: Normalization | None
    notes: Sequence[str]


def _load_into(model: nn.Module, path: Path, weights_key: str | None) -> _Loaded:
    """Find the network in the file and copy its tensors into the model."""
    expected, file = expected_tensors(model), open_weights(path)
    place, equals = _choose_place(expected, file, weights_key)
    described = file.containers[place.where]
    around, notes = checked_surroundings(expected, place, file, weights_key)
    unseen = unseen_in_front(place, described)
    if unseen:
        notes.append(
            f"the network is part {place.prefix.rstrip('.')!r} of a sequence; the file has no tensors of "
            f"{', '.join(map(repr, unseen))} before it, so that whatever that part does to images is left out"
        )
    tensors = file.read(place.where, place.names.values())
    notes += copy_into(model, expected, place, tensors, file.name)
    normalization = None
    if around.normalization is not None:
        read = file.read(place.where, around.normalization)
        mean, std = (read[name] for name in around.normalization)
        normalization = normalization_in_front(mean, std, file.name)
    key = place.label if has_other_networks(place, equals, file) else None
    if key is not None:
        notes.insert(0, f"the file's network at {key!r} was loaded")
    return _Loaded(key, normalization, notes)


def expected_tensors(model: nn.Module) -> Expected:
    """The tensors that a file must have to be weights of this network."""
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    return Expected({name: describe(tensor) for name, tensor in state.items()}, aliases(state))


def _choose_place(expected: Expected, file: WeightsFile, weights_key: str | None) -> tuple[Place, list[Place]]:
    """Return the network's place in the file, and other places with the same numbers.

    Raises:
        InvalidInput: no network in the file fits, or several with different numbers.
    """
    fitting = fitting_places(expected, file, weights_key)
    first, others = fitting[0], fitting[1:]
    if all(_are_equal(file, first, other) for other in others):
        return first, others
    held = ", ".join(repr(place.label) for place in fitting)
    raise InvalidInput(
        f"{file.name} holds {len(fitting)} networks that fit the architecture, at {held:.500}; choose one with "
        "weights_key"
    )


def _are_equal(file: WeightsFile, one: Place, other: Place) -> bool:
    if one.names.keys() != other.names.keys():
        return False
    # Tensor by tensor, since a file may be as large as the memory.
    for name in one.names:
        (a,) = file.read(one.where, [one.names[name]]).values()
        (b,) = file.read(other.where, [other.names[name]]).values()
        # As bytes, since torch cannot compare float8.
        if a.dtype != b.dtype or not torch.equal(_bytes(a), _bytes(b)):
            return False
    return True


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
