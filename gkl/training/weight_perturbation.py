"""Adversarial weight perturbation (AWP, arXiv 2004.05884): a step's gradient is taken at weights with a higher loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gkl.formats.shared_memory import once


class WeightPerturber:
    """Moves the convolution and linear weights to where the objective is higher, and back.

    Each weight tensor w moves by gamma * ||w|| * g / ||g||, where g is its gradient. The paper's code makes this move
    on a copy of the network with a second optimizer; dividing by the norm cancels that optimizer's learning rate.
    """

    def __init__(self, model: nn.Module, gamma: float) -> None:
        self.gamma = gamma
        weights = [m.weight for m in model.modules() if isinstance(m, _ConvNd | nn.Linear)]
        # Each weight once, since a weight that two layers share must not be moved twice.
        self.weights = once(weight for weight in weights if weight.requires_grad)

    @contextmanager
    def perturbed(self, objective: Tensor) -> Iterator[None]:
        """Within the block, the weights are moved to where `objective`, a scalar computed from them, is higher.

        At the end only this move is subtracted: an optimizer step made within the block is kept, as in the paper.
        """
        # Some layers of RobustBench's networks are not used in their forward pass; they get no gradient and no move.
        gradients: Sequence[Tensor | None] = torch.autograd.grad(objective, self.weights, allow_unused=True)
        used = [(w, g) for w, g in zip(self.weights, gradients, strict=True) if g is not None]
        weights = [weight for weight, _ in used]
        with torch.no_grad():
            tiny = torch.finfo(torch.float32).tiny
            # Divided before the product, so that a gradient of 0 gives a move of 0.
            moves = [g / g.norm().clamp_min(tiny) * (self.gamma * w.norm()) for w, g in used]
            torch._foreach_add_(weights, moves)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_sub_(weights, moves)
