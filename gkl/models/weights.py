"""From a file of weights, wherever it comes from, to a network that has them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkl.errors import InvalidInput
from gkl.files import sha256_of
from gkl.models.registry import build_model
from gkl.models.robustbench import load_published, published_files
from gkl.tensor_files import load_tensors
from gkl.weights_format import weights_format
from gkl.zoo import ZOO

# Under which scripts store the network in a dictionary with other things, in the order in which they are looked for.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# What DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict written by torch.save, on the CPU.

    A state dict is read by torch's unpickler that builds tensors only. It may lie in a dictionary under 'state_dict',
    'model_state_dict', 'model' or 'net', and have the prefixes of DataParallel and torch.compile.

    Raises:
        InvalidInput: it is another kind of file, damaged, or holds more than tensors.
    """
    if weights_format(path) == "safetensors":
        tensors, _ = load_tensors(path)
        return tensors
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged or hostile file can raise anything.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(
            f"{path.name} cannot be read as a state dict ({reason}); a whole model or a script is never loaded: save "
            "torch.save(model.state_dict(), path), or better safetensors"
        ) from error
    return _state_dict(content, path.name)


def _state_dict(content: Any, name: str) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    ):
        raise InvalidInput(
            f"{name} holds no state dict (names and tensors); save it with torch.save(model.state_dict(), path)"
        )
    tensors = dict(content)
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a file into a network, which must have exactly these names and shapes.

    Weights in another floating format, such as float16, are converted to the network's float32. Files from before
    torch counted the batches that BatchNorm has seen may lack that count, which no evaluation uses.

    Raises:
        InvalidInput: with the first difference, if the file is unreadable or of another network.
    """
    tensors = read_weights(path)
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in tensors and name.endswith("num_batches_tracked"):
            tensors[name] = tensor
        if name not in tensors:
            raise InvalidInput(f"{path.name} lacks the tensor {name!r}; was it made by another architecture?")
        given = tensors[name]
        if given.shape != tensor.shape or given.is_floating_point() != tensor.is_floating_point():
            raise InvalidInput(
                f"tensor {name!r} in {path.name} is {given.dtype} {tuple(given.shape)}, but the architecture "
                f"has {tensor.dtype} {tuple(tensor.shape)} there; choose the architecture it was trained with"
            )
        if given.is_floating_point() and not given.isfinite().all():
            raise InvalidInput(f"tensor {name!r} in {path.name} has NaN or infinite values; the training diverged")
    surplus = sorted(tensors.keys() - expected.keys())
    if surplus:
        raise InvalidInput(f"{path.name} has a tensor {surplus[0]!r} that the architecture does not have")
    model.load_state_dict(tensors)


def load_model(architecture: str, dataset: str, weights: Path | None, models_dir: Path | None) -> nn.Module:
    """The network with its weights: from a file, or without one those published with RobustBench's zoo.

    Raises:
        InvalidInput: the file is unreadable, of another network, or missing.
    """
    if weights is None:
        if architecture not in ZOO:
            raise InvalidInput(f"{architecture} has no published weights; name the file with its weights")
        if models_dir is None:
            raise InvalidInput("published weights need a directory of models; name one, or give a file of weights")
        return load_published(architecture, models_dir)
    model = build_model(architecture, dataset)
    load_weights(model, weights)
    return model


def weights_sha256(architecture: str, weights: Path | None, models_dir: Path | None) -> str:
    """sha256 of the file; of the hashes of all its files, one a line, for a published ensemble."""
    if weights is not None:
        return sha256_of(weights)
    assert models_dir is not None, "load_model comes first"
    hashes = [sha256_of(file) for file in published_files(architecture, models_dir)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
