"""Tensor names and shapes of uploaded weights: stored with them, and compared with the network that a job names."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from gkl.catalog.network_tensors import architectures_that_fit, check_contents
from gkl.errors import InvalidInput
from gkl.formats.weights_contents import Contents, Described, safetensors_contents
from gkl.spec import NamedWeights

# Real headers take thousands of bytes. A larger one is not stored: the run checks the file.
_MOST_BYTES = 1024 * 1024
_SUGGESTED = 3
# With more tensors than any network of the catalog has, no other architecture is suggested: the search takes seconds.
_MOST_TENSORS = 3_000
_FILE = "the file"


def read(path: Path) -> bytes | None:
    """Names, formats and shapes of a safetensors file's tensors, packed for the database; None if they are too large.

    Raises:
        InvalidInput: the file is damaged.
    """
    found = safetensors_contents(path, _FILE)
    written = {
        where: {name: [each.dtype, each.shape] for name, each in tensors.items()}
        for where, tensors in found.containers.items()
    }
    packed = zlib.compress(json.dumps(written, separators=(",", ":")).encode())
    return packed if len(packed) <= _MOST_BYTES else None


def problem(packed: bytes, spec: NamedWeights) -> str | None:
    """Why a run could not load these weights as the spec says, in a sentence; None if no reason is known."""
    contents = _unpacked(packed)
    try:
        check_contents(contents, spec.architecture, spec.dataset, spec.weights_key)
    except InvalidInput as error:
        return f"{error}{_advice(contents, spec)}"
    return None


def _advice(contents: Contents, spec: NamedWeights) -> str:
    if sum(map(len, contents.containers.values())) > _MOST_TENSORS:
        return ""
    fitting = architectures_that_fit(contents, spec.dataset, spec.weights_key)
    if not fitting:
        return ""
    own_first = sorted(fitting, key=lambda name: "/" in name)
    more = len(own_first) - _SUGGESTED
    return f". It fits {', '.join(own_first[:_SUGGESTED])}" + (f" and {more} more" if more > 0 else "")


def _unpacked(packed: bytes) -> Contents:
    written = json.loads(zlib.decompress(packed))
    return Contents(
        _FILE,
        {
            where: {name: Described.of_safetensors(dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()}
            for where, tensors in written.items()
        },
    )
