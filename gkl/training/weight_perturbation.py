"""Adversarial weight perturbation: the step's gradient is taken where the weights are worst (AWP, arXiv 2004.05884)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gkl.formats.shared_memory import once


class WeightPerturber:
    """Moves convolution and linear weights up the trained objective, and back.

    Each weight tensor w moves by gamma * ||w|| * g / ||g|| with g its gradient. The paper's code makes this move
    on a copy of the network with an optimizer of its own, whose learning rate the norm cancels.
    """

    def __init__(self, model: nn.Module, gamma: float) -> None:
        self.gamma = gamma
        weights = [m.weight for m in model.modules() if isinstance(m, _ConvNd | nn.Linear)]
        # Once each: layers that share a weight must not move it twice.
        self.weights = once(weight for weight in weights if weight.requires_grad)

    @contextmanager
    def perturbed(self, objective: Tensor) -> Iterator[None]:
        """Within the context, the weights are moved to where `objective`, a scalar computed from them, is higher.

        An optimizer's step made within stays, as in the paper: only the move is taken back.
        """
        # RobustBench's networks have layers that their forward pass leaves out: no gradient, no move.
        gradients: Sequence[Tensor | None] = torch.autograd.grad(objective, self.weights, allow_unused=True)
        used = [(w, g) for w, g in zip(self.weights, gradients, strict=True) if g is not None]
        weights = [weight for weight, _ in used]
        with torch.no_grad():
            tiny = torch.finfo(torch.float32).tiny
            # Divided first: a gradient of 0 stays 0.
            moves = [g / g.norm().clamp_min(tiny) * (self.gamma * w.norm()) for w, g in used]
            torch._foreach_add_(weights, moves)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_sub_(weights, moves)
