"""Files of weights that have the names and shapes of a real network, for tests that run none."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save

from gkl.catalog.network_tensors import expected_tensors

_NUMPY = {"torch.float32": np.float32, "torch.int64": np.int64}


def weights_of(architecture: str, dataset: str, *, seed: int = 0, prefix: str = "") -> bytes:
    """As safetensors; each seed another file."""
    expected, generator = expected_tensors(architecture, dataset), np.random.default_rng(seed)
    assert expected is not None
    return save(
        {
            prefix + name: generator.standard_normal(tensor.shape).astype(_NUMPY[tensor.dtype])
            for name, tensor in expected.tensors.items()
        }
    )
