"""Gives the caller's model back as it was, whatever it does when it is called."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gkl.device import set_tensor_float_32


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore the model and the random streams when the block ends; within it the model may be moved and called.

    Restores the numbers, devices and identity of parameters and buffers, and the modes and attributes of modules. The
    random streams are Python's, NumPy's and torch's, on the CPU and, if CUDA was used before, on the GPUs. Within the
    block float32 products are exact (no TF32).
    """
    # Each attribute, and a copy of the dictionaries of parameters, buffers and hooks.
    modules = [
        (m, {name: (v, v.copy() if isinstance(v, dict) else None) for name, v in vars(m).items()})
        for m in model.modules()
    ]
    tensors = [(t, t.data, t.detach().clone(), t.requires_grad, t.grad) for t in _tensors(model)]
    try:
        with own_streams():
            set_tensor_float_32(False)
            yield
    finally:
        for module, attributes in modules:
            _restore(module, attributes)
        for tensor, data, values, requires_grad, grad in tensors:
            tensor.data = data
            if not torch.equal(data, values):
                data.copy_(values)
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
                tensor.grad = grad


@contextmanager
def own_streams() -> Iterator[None]:
    """Restore the random streams and the precision of float32 products when the block ends.

    The streams are Python's, NumPy's and torch's, on the CPU and, if CUDA was used before, on the GPUs.
    """
    streams = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    precisions = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]
    try:
        yield
    finally:
        random.setstate(streams[0])
        np.random.set_state(streams[1])
        torch.set_rng_state(streams[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = precisions  # type: ignore[attr-defined]


def _tensors(model: nn.Module) -> list[Tensor]:
    """Every parameter and buffer, once."""
    found: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        found.setdefault(id(tensor), tensor)
    return list(found.values())


def _restore(module: nn.Module, attributes: dict[str, tuple[Any, dict[Any, Any] | None]]) -> None:
    state = vars(module)
    for name in set(state) - set(attributes):
        del state[name]
    for name, (value, content) in attributes.items():
        state[name] = value
        if content is not None:
            value.clear()
            value.update(content)
