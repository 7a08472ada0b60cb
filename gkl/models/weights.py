"""From a file of weights, wherever it comes from, to a network that has them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from gkl.errors import InvalidInput
from gkl.files import sha256_of
from gkl.models.registry import build_model
from gkl.models.robustbench import load_published, published_files
from gkl.safetensors_header import read_header
from gkl.state_dict import read_state_dict, without_prefixes
from gkl.tensor_files import load_tensors
from gkl.weights_format import check_weights_file, weights_format
from gkl.zoo import ZOO


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict written by torch.save, on the CPU.

    Names may have the prefixes of DataParallel and torch.compile, which are left out.

    Raises:
        InvalidInput: it is another kind of file, damaged, or holds more than tensors.
    """
    if check_weights_file(path) == "torch":
        return read_state_dict(path)
    tensors, _ = load_tensors(path)
    return without_prefixes(tensors)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a file into a network, which must have exactly these names and shapes.

    Weights in another floating format, such as float16, are converted to the network's float32. Files from before
    torch counted the batches that BatchNorm has seen may lack that count, which no evaluation uses.

    Raises:
        InvalidInput: with the first difference, if the file is unreadable or of another network.
    """
    expected = model.state_dict()
    if weights_format(path) == "safetensors":
        # Told by the header: nothing is allocated for the weights of another network.
        described = without_prefixes(read_header(path))
        _check_fit(
            expected,
            {name: _Described(each.dtype, each.shape, each.is_floating) for name, each in described.items()},
            path.name,
        )
    tensors = read_weights(path)
    given = {name: _Described(str(t.dtype), tuple(t.shape), t.is_floating_point()) for name, t in tensors.items()}
    _check_fit(expected, given, path.name)
    for name, wanted in expected.items():
        if name not in tensors:
            tensors[name] = wanted
            continue
        tensors[name] = tensors[name].to(wanted.dtype)
        if wanted.is_floating_point() and not tensors[name].isfinite().all():
            raise InvalidInput(f"tensor {name!r} in {path.name} has NaN or infinite values; the training diverged")
    model.load_state_dict(tensors)


class _Described(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    is_floating: bool


def _check_fit(expected: Mapping[str, Tensor], given: Mapping[str, _Described], file: str) -> None:
    """
    Raises:
        InvalidInput: with the first difference.
    """
    for name, tensor in expected.items():
        if name not in given:
            if name.endswith("num_batches_tracked"):
                continue
            raise InvalidInput(f"{file} lacks the tensor {name!r}; was it made by another architecture?")
        found = given[name]
        if found.shape != tuple(tensor.shape) or found.is_floating != tensor.is_floating_point():
            raise InvalidInput(
                f"tensor {name!r} in {file} is {found.dtype} {found.shape}, but the architecture has {tensor.dtype} "
                f"{tuple(tensor.shape)} there; choose the architecture it was trained with"
            )
    surplus = sorted(given.keys() - expected.keys())
    if surplus:
        raise InvalidInput(f"{file} has a tensor {surplus[0]!r:.100} that the architecture does not have")


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
