"""One task for each way of training. A task defines a training step, its metrics, and the held-out measurement."""

from __future__ import annotations

import torch
from torch import nn

from gkl.spec import CrossEntropyObjective, TrainSpec
from gkl.training.tasks.adversarial import AdversarialTask
from gkl.training.tasks.base import StepOutcome, Task
from gkl.training.tasks.natural import NaturalTask

__all__ = ["AdversarialTask", "NaturalTask", "StepOutcome", "Task", "make_task"]


def make_task(spec: TrainSpec, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> Task:
    """Make the task for a spec's objective."""
    kind = NaturalTask if isinstance(spec.objective, CrossEntropyObjective) else AdversarialTask
    return kind(spec, model, optimizer, generator)
