"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.sgd import sgd


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a weight decay."""

    parameters: list[Tensor]
    weight_decay: float


class GradientDescent:
    """Computes what torch.optim.SGD computes, by the same function of torch.

    That class loads torch's compiler as soon as it is made, whether anything is compiled or not: about two seconds of
    each run.
    """

    def __init__(
        self, groups: Iterable[ParameterGroup], *, learning_rate: float, momentum: float, nesterov: bool
    ) -> None:
        self.groups = [group for group in groups if group.parameters]
        self.learning_rate, self.momentum, self.nesterov = learning_rate, momentum, nesterov
        self.momentum_buffers: dict[Tensor, Tensor] = {}
        """Of each parameter that has been updated, where there is a momentum."""

    def zero_grad(self) -> None:
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.groups:
            parameters = [p for p in group.parameters if p.grad is not None]
            buffers = [self.momentum_buffers.get(p) for p in parameters]
            sgd(
                parameters,
                [p.grad for p in parameters if p.grad is not None],
                buffers,
                weight_decay=group.weight_decay,
                momentum=self.momentum,
                lr=self.learning_rate,
                dampening=0.0,
                nesterov=self.nesterov,
                maximize=False,
            )
            # Made by a first step.
            made = {p: buffer for p, buffer in zip(parameters, buffers, strict=True) if buffer is not None}
            self.momentum_buffers |= made
