"""A running average of the weights, which is more robust than any one epoch's."""

from __future__ import annotations

import copy

import torch
from torch import nn

from gkl.formats.shared_memory import sharing
from gkl.spec import EpochAveraging, StepAveraging


class WeightAverage:
    """Exponential moving average of a network's weights and, unless the spec has them copied, of its buffers.

    BatchNorm's statistics are averaged with the weights they belong to: a network with averaged weights and the last
    step's statistics is one that was never trained. Integer buffers, such as counts of batches, are copied. A tensor
    under several names is averaged once.
    """

    def __init__(self, model: nn.Module, spec: EpochAveraging | StepAveraging, total_steps: int) -> None:
        self.spec = spec
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._shared = [name for names in sharing(self.model.state_dict()) for name in names]
        buffers = [] if spec.buffers == "averaged" else self.model.named_buffers(remove_duplicate=False)
        self._copied = {name for name, _ in buffers}
        warmup = spec.warmup_fraction if isinstance(spec, StepAveraging) else 0.0
        self.warmup_steps = int(warmup * total_steps)

    def after_step(self, model: nn.Module, steps_done: int) -> None:
        if isinstance(self.spec, StepAveraging):
            beyond = steps_done - self.warmup_steps
            self._move(model, 0.0 if beyond <= 0 else min(self.spec.tau, (1 + beyond) / (10 + beyond)))

    def after_epoch(self, model: nn.Module, epochs_done: int) -> None:
        if isinstance(self.spec, EpochAveraging):
            # The first epoch's weights are the average's start, not the random initialization.
            self._move(model, self.spec.tau if epochs_done > 1 else 0.0)

    @torch.no_grad()
    def _move(self, model: nn.Module, decay: float) -> None:
        current, averages = model.state_dict(), self.model.state_dict()
        averaged = {
            name
            for name, average in averages.items()
            if average.is_floating_point() and decay > 0 and name not in self._copied
        }
        # From the old averages, before any name changes what another shows.
        moved = {name: averages[name].lerp(current[name], 1 - decay) for name in self._shared if name in averaged}
        for name, average in averages.items():
            if name in moved:
                average.copy_(moved[name])
            elif name in averaged:
                average.lerp_(current[name], 1 - decay)
            else:
                average.copy_(current[name])
