"""`python -m gkl.models.tensor_table` builds all networks and writes the table of `gkl.catalog.network_tensors`.

Run it again after adding an architecture or updating RobustBench. It takes some minutes.
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
    """Return the tensors of a freshly built network. It is built on the meta device if its definition allows that."""
    try:
        with torch.device("meta"):
            return expected_tensors(build_model(architecture, dataset))
    except (RuntimeError, NotImplementedError):
        return expected_tensors(build_model(architecture, dataset))


def lines() -> list[str]:
    """Return the lines of the table, in the form in which `gkl.catalog.network_tensors` reads them."""
    numbers: dict[str, int] = {}
    networks = {}
    for architecture, described in ARCHITECTURES.items():
        for dataset in described.datasets:
            layout = _json(_written(built(architecture, dataset)))
            networks[f"{architecture} {dataset}"] = numbers.setdefault(layout, len(numbers))
    return [_json({"networks": networks, "published": published()}), *numbers]


def published() -> dict[str, Any]:
    """Return, for each zoo model, the fields of `gkl.catalog.network_tensors.Published`."""
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
