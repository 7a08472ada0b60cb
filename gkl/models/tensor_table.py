"""`python -m gkl.models.tensor_table` builds all networks and writes the table of `gkl.catalog.network_tensors`.

To be run again when an architecture is added, or when RobustBench is updated. Takes some minutes.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import torch

from gkl.catalog import ARCHITECTURES
from gkl.catalog.network_tensors import TABLE
from gkl.catalog.zoo import ZOO
from gkl.files import atomic_path
from gkl.formats.layouts import Expected
from gkl.models.registry import build_model
from gkl.models.robustbench import files_in, name_in_torch_cache
from gkl.models.weights import expected_tensors


def built(architecture: str, dataset: str) -> Expected:
    """Of a network that is built for this; without its numbers, where its definition does not look at them."""
    try:
        with torch.device("meta"):
            return expected_tensors(build_model(architecture, dataset))
    except (RuntimeError, NotImplementedError):
        return expected_tensors(build_model(architecture, dataset))


def lines() -> list[str]:
    """The table, as `gkl.catalog.network_tensors` reads it."""
    numbers: dict[str, int] = {}
    networks = {}
    for architecture, described in ARCHITECTURES.items():
        for dataset in described.datasets:
            layout = _json(_written(built(architecture, dataset)))
            networks[f"{architecture} {dataset}"] = numbers.setdefault(layout, len(numbers))
    return [_json({"networks": networks, "published": published()}), *numbers]


def published() -> dict[str, Any]:
    """Where the published weights of each model of the zoo are kept, see `gkl.catalog.network_tensors.Published`."""
    return {
        name: {
            "files": [str(path) for path in files_in(Path(), name)],
            "in_torch_cache": name_in_torch_cache(name),
        }
        for name in ZOO
    }


def _written(expected: Expected) -> dict[str, Any]:
    tensors = [
        [name, tensor.dtype.removeprefix("torch."), list(tensor.shape)] for name, tensor in expected.tensors.items()
    ]
    return {"tensors": tensors, "same": expected.same}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def main() -> None:
    with atomic_path(TABLE) as temporary:
        temporary.write_bytes(lzma.compress("\n".join(lines()).encode(), preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    main()
