"""Averages the weights during training; the average is usually more robust than the weights of a single epoch."""

from __future__ import annotations

import copy

import torch
from torch import nn

from gkl.formats.shared_memory import sharing
from gkl.spec import EpochAveraging, StepAveraging


class WeightAverage:
    """Exponential moving average of a network's weights and buffers. If the spec's `buffers` are 'copied', the buffers
    are copied from the trained network instead.

    By default BatchNorm's statistics are averaged like the weights they belong to: the last step's statistics do not
    fit averaged weights. Integer buffers, such as counts of batches, are always copied. A tensor that has several names
    is averaged once.
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
        """Update the average after a training step, if the spec averages steps."""
        if isinstance(self.spec, StepAveraging):
            beyond = steps_done - self.warmup_steps
            self._move(model, 0.0 if beyond <= 0 else min(self.spec.tau, (1 + beyond) / (10 + beyond)))

    def after_epoch(self, model: nn.Module, epochs_done: int) -> None:
        """Update the average after an epoch, if the spec averages epochs."""
        if isinstance(self.spec, EpochAveraging):
            # The average starts from the weights after the first epoch, not from the random initialization.
            self._move(model, self.spec.tau if epochs_done > 1 else 0.0)

    @torch.no_grad()
    def _move(self, model: nn.Module, decay: float) -> None:
        """average = decay * average + (1 - decay) * model; with decay 0 everything is copied."""
        current, averages = model.state_dict(), self.model.state_dict()
        averaged = {
            name
            for name, average in averages.items()
            if average.is_floating_point() and decay > 0 and name not in self._copied
        }
        # Tensors that share memory: computed before any of them is written, since writing one changes the others.
        moved = {name: averages[name].lerp(current[name], 1 - decay) for name in self._shared if name in averaged}
        for name, average in averages.items():
            if name in moved:
                average.copy_(moved[name])
            elif name in averaged:
                average.lerp_(current[name], 1 - decay)
            else:
                average.copy_(current[name])
