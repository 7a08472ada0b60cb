"""Adversarial weight perturbation: the step's gradient is taken where the weights are worst (AWP, arXiv 2004.05884)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


class WeightPerturber:
    """Moves convolution and linear weights up the trained objective, and back.

    Each weight tensor w moves by gamma * ||w|| * g / ||g|| with g its gradient. The paper's code makes this move
    on a copy of the network with an optimizer of its own, whose learning rate the norm cancels.
    """

    def __init__(self, model: nn.Module, gamma: float) -> None:
        self.gamma = gamma
        self.weights = [m.weight for m in model.modules() if isinstance(m, _ConvNd | nn.Linear)]
        self._moves: list[Tensor] = []

    def perturb(self, objective: Tensor) -> None:
        """Move the weights to increase `objective`, a scalar computed from them."""
        gradients = torch.autograd.grad(objective, self.weights)
        with torch.no_grad():
            tiny = torch.finfo(torch.float32).tiny
            self._moves = [
                gradient * (self.gamma * weight.norm() / gradient.norm().clamp_min(tiny))
                for weight, gradient in zip(self.weights, gradients, strict=True)
            ]
            torch._foreach_add_(self.weights, self._moves)

    @torch.no_grad()
    def restore(self) -> None:
        """Take the moves back, after the optimizer's step."""
        torch._foreach_sub_(self.weights, self._moves)
        self._moves = []


@contextmanager
def unrecorded_statistics(model: nn.Module) -> Iterator[None]:
    """Within, BatchNorm in train mode uses the batch's statistics without adding them to its running ones."""
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
