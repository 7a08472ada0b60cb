"""Distillation: the student learns from a teacher's predictions on the same clean images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkl.catalog import DATASETS
from gkl.losses import dkd_loss, dkl_loss, gkl_loss_and_parts, kd_loss
from gkl.spec import (
    DistillDklObjective,
    DistillGklObjective,
    DistillIklObjective,
    DistillSpec,
    DkdObjective,
    KdObjective,
    RsladGklObjective,
)
from gkl.training.class_prior import ClassPrior
from gkl.training.tasks.base import Batch
from gkl.training.tasks.natural import NaturalTask
from gkl.training.teacher import Teacher

PairLoss = DistillIklObjective | DistillGklObjective | RsladGklObjective
"""Losses over pairs of classes, which are weighted."""


class PairWeights:
    """The weights of the classes in IKL and GKL, from the teacher's predictions: row y of its prior, which is its mean
    prediction for class y in the epoch before, or without class-wise information its prediction for the image itself.
    """

    def __init__(self, objective: PairLoss, *, num_classes: int, device: torch.device) -> None:
        self.is_class_wise, self.temperature = objective.class_wise, objective.prior_temperature
        self.prior = ClassPrior(num_classes, temperature=objective.prior_temperature, device=device)

    def of(self, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """(B, C), without a gradient."""
        if self.is_class_wise:
            return self.prior.of(labels)
        return F.softmax(teacher_logits.detach().float() / self.temperature, dim=1)

    def record(self, teacher_logits: Tensor, batch: Batch) -> None:
        # Of two views the basic one speaks for its class.
        self.prior.accumulate(teacher_logits[: batch.own], batch.labels[: batch.own])


class DistillationTask(NaturalTask):
    """label_weight * CE + min(epoch / ramp_epochs, 1) * the divergence to the teacher.

    Of two views of a batch, the mean over both; the teacher sees the same views. It keeps the class prior of IKL and
    GKL, which is made from the teacher's predictions.
    """

    def __init__(
        self,
        spec: DistillSpec,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        teacher: Teacher,
    ) -> None:
        super().__init__(spec, model, optimizer, generator)
        objective = spec.objective
        assert isinstance(
            objective, KdObjective | DkdObjective | DistillDklObjective | DistillIklObjective | DistillGklObjective
        ), "the other objectives have tasks of their own"
        self.objective, self.teacher = objective, teacher
        self.weights = None
        if isinstance(objective, DistillIklObjective | DistillGklObjective):
            classes = DATASETS[spec.dataset].num_classes
            self.weights = PairWeights(objective, num_classes=classes, device=generator.device)

    def finish_epoch(self) -> None:
        if self.weights is not None:
            self.weights.prior.finish_epoch()

    def state(self) -> dict[str, Tensor]:
        return prior_state(self.weights)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        restore_prior(self.weights, state)

    def _minimized(self, batch: Batch, *, epoch: int) -> Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]:
        teacher_logits = self.teacher.logits(batch.x, batch.rows)
        if self.weights is not None:
            self.weights.record(teacher_logits, batch)
        objective = self.objective
        ramp = min(epoch / objective.ramp_epochs, 1.0) if objective.ramp_epochs else 1.0

        def loss(logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            natural = self._cross_entropy(logits, batch.labels)
            divergence, parts = self._divergence(logits, teacher_logits, batch.labels)
            return objective.label_weight * natural + ramp * divergence, {"natural": natural, **parts}

        return loss

    def _divergence(self, logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted divergence to the teacher, and its parts before their weights."""
        objective = self.objective
        temperature = objective.temperature
        if isinstance(objective, KdObjective):
            kd = kd_loss(logits, teacher_logits, temperature=temperature)
            return objective.kl_weight * kd, {"kd": kd}
        if isinstance(objective, DkdObjective):
            dkd = dkd_loss(
                logits,
                teacher_logits,
                labels,
                target_weight=objective.target_weight,
                non_target_weight=objective.non_target_weight,
                temperature=temperature,
            )
            return dkd, {"dkd": dkd}
        if isinstance(objective, DistillDklObjective):
            dkl = temperature**2 * dkl_loss(logits / temperature, teacher_logits / temperature)
            return objective.kl_weight * dkl, {"dkl": dkl}
        assert self.weights is not None
        return pair_loss(objective, logits, teacher_logits, self.weights.of(teacher_logits, labels))


def pair_loss(
    objective: PairLoss, logits: Tensor, teacher_logits: Tensor, weights: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """IKL or GKL between student and teacher, (B, C) each, with weights (B, C)."""
    # IKL is GKL with gamma 1: the rows of the weights sum to 1, so there are as many pairs as samples.
    gamma = 1.0 if isinstance(objective, DistillIklObjective) else objective.gamma
    loss, wmse, ce = gkl_loss_and_parts(
        logits,
        teacher_logits,
        weights,
        wmse_weight=objective.wmse_weight,
        ce_weight=objective.ce_weight,
        gamma=gamma,
        temperature=objective.temperature,
    )
    return loss, {"ce": ce, "wmse": wmse}


def prior_state(weights: PairWeights | None) -> dict[str, Tensor]:
    """The tensors that a checkpoint must hold."""
    return {} if weights is None else {f"prior.{name}": tensor for name, tensor in weights.prior.state().items()}


def restore_prior(weights: PairWeights | None, state: Mapping[str, Tensor]) -> None:
    if weights is not None:
        weights.prior.restore({name.removeprefix("prior."): tensor for name, tensor in state.items()})
