"""One task for each way of training. A task defines a training step, its metrics, and the held-out measurement."""

from __future__ import annotations

import torch
from torch import nn

from gkl.spec import BaseTrainSpec, CrossEntropyObjective, DistillSpec, RobustDistillationObjective, TrainSpec
from gkl.training.tasks.adversarial import AdversarialTask
from gkl.training.tasks.base import Batch, StepOutcome, Task
from gkl.training.tasks.distillation import DistillationTask
from gkl.training.tasks.natural import NaturalTask
from gkl.training.tasks.robust_distillation import RobustDistillationTask
from gkl.training.teacher import Teacher

__all__ = [
    "AdversarialTask",
    "Batch",
    "DistillationTask",
    "NaturalTask",
    "RobustDistillationTask",
    "StepOutcome",
    "Task",
    "make_task",
]


def make_task(
    spec: BaseTrainSpec,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    teacher: Teacher | None = None,
) -> Task:
    """The task that a spec's objective asks for; a distillation's needs the teacher."""
    if isinstance(spec.objective, CrossEntropyObjective):
        return NaturalTask(spec, model, optimizer, generator)
    if isinstance(spec, DistillSpec):
        assert teacher is not None, "the spec requires one"
        kind = RobustDistillationTask if isinstance(spec.objective, RobustDistillationObjective) else DistillationTask
        return kind(spec, model, optimizer, generator, teacher)
    assert isinstance(spec, TrainSpec)
    return AdversarialTask(spec, model, optimizer, generator)
