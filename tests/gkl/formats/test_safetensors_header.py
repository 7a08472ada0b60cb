"""What the header's check lets through, the loader reads in the same way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gkl.errors import InvalidInput
from gkl.formats.safetensors_header import TensorHeader, read_header, read_metadata
from tests.hostile import safetensors, tensor


def test_it_tells_formats_and_shapes_without_the_values(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    written = {
        "half": torch.zeros(3, 4, dtype=torch.bfloat16),
        "quarter": torch.zeros(2, dtype=torch.float8_e4m3fn),
        "counter": torch.ones((), dtype=torch.int64),
    }
    save_file(written, path, {"gklbench": json.dumps({"dataset": "digits"})})
    assert read_header(path) == {
        "half": TensorHeader("BF16", (3, 4)),
        "quarter": TensorHeader("F8_E4M3", (2,)),
        "counter": TensorHeader("I64", ()),
    }
    assert read_metadata(path) == {"dataset": "digits"}


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(
            b'{"a":%s,"a":%s}' % ((json.dumps(tensor()).encode()), json.dumps(tensor(dtype="I32")).encode()), id="name"
        ),
        pytest.param(json.dumps({"a": tensor(code="x")}).encode(), id="key"),
    ],
)
def test_a_name_given_twice_and_an_unknown_key_mean_the_same_to_both(header: bytes, tmp_path: Path) -> None:
    """A file that two readers understand differently could be checked as one network and run as another."""
    path = tmp_path / "odd.safetensors"
    path.write_bytes(safetensors(header, torch.ones(2).numpy().tobytes()))
    found, loaded = read_header(path), load_file(path)
    assert found.keys() == loaded.keys() == {"a"}
    assert found["a"].shape == tuple(loaded["a"].shape)
    assert found["a"].is_floating == loaded["a"].is_floating_point()


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "C64"])
def test_number_formats_that_no_network_here_has_are_refused(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(
        safetensors({"a": tensor(dtype=dtype, shape=[{"F4": 16, "F8_E8M0": 8, "C64": 1}[dtype]])}, bytes(8))
    )
    with pytest.raises(InvalidInput, match="number format"):
        read_header(path)
