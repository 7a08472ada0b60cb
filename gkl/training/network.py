"""Runs a network with the precision, memory layout and compiler that a spec asks for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gkl.errors import InvalidInput
from gkl.spec import Compute


class Network:
    """A model, run with the precision and memory layout of a spec and compiled if it says so; logits are float32."""

    def __init__(self, model: nn.Module, compute: Compute, device: torch.device) -> None:
        """
        Raises:
            InvalidInput: the spec wants the model compiled, and there is no compiler.
        """
        self.model = model
        self.device = device
        self.compute = compute
        self._forward: Callable[[Tensor], Tensor] = model
        if compute.compile:
            if not any(map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))):
                raise InvalidInput("compute.compile needs a C++ compiler such as g++; install one, or leave it out")
            # torch compiles the model again for train and eval mode; for gradients to images, weights, both or
            # neither; for an epoch's smaller last batch; with and without updating BatchNorm's statistics; and for
            # their momentum in the first step. (torch's own annotations lack the two options.)
            options: dict[str, Any] = {"recompile_limit": 64, "isolate_recompiles": True}
            self._forward = torch.compile(model, dynamic=False, **options)

    def __call__(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, num_classes)."""
        if self.compute.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.compute.precision != "bfloat16":
            return self._forward(x)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self._forward(x)
        return logits.float()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the block, no parameter requires a gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
