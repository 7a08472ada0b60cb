"""Robust distillation: the student matches a robust teacher on its own adversarial images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkl.catalog import DATASETS
from gkl.losses import kl_loss
from gkl.spec import (
    AdaadObjective,
    ArdObjective,
    DistillSpec,
    IadObjective,
    RobustDistillationObjective,
    RsladGklObjective,
    RsladObjective,
)
from gkl.training.tasks.base import Batch
from gkl.training.tasks.distillation import PairWeights, pair_loss, prior_state, restore_prior
from gkl.training.tasks.perturbing import PerturbingTask
from gkl.training.teacher import Teacher

Parts = dict[str, Tensor]


class RobustDistillationTask(PerturbingTask):
    """ARD, IAD-I, RSLAD, AdaAD, and RSLAD with GKL. It keeps the class prior of the last, made from the teacher's
    predictions on clean images.
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
        assert isinstance(spec.objective, RobustDistillationObjective), "the other objectives have tasks of their own"
        self.objective, self.teacher = spec.objective, teacher
        self.weights = None
        if isinstance(spec.objective, RsladGklObjective):
            classes = DATASETS[spec.dataset].num_classes
            self.weights = PairWeights(spec.objective, num_classes=classes, device=generator.device)

    def finish_epoch(self) -> None:
        if self.weights is not None:
            self.weights.prior.finish_epoch()

    def state(self) -> dict[str, Tensor]:
        return prior_state(self.weights)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        restore_prior(self.weights, state)

    def _maximized(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        maximizes = self.objective.maximizes
        if maximizes == "cross_entropy":
            return lambda x_adv: F.cross_entropy(self.network(x_adv), batch.labels)
        if maximizes == "adaptive_divergence":
            return lambda x_adv: kl_loss(self.network(x_adv), self.teacher(x_adv))
        teacher_logits = self.teacher.logits(batch.x, batch.rows)
        return lambda x_adv: kl_loss(self.network(x_adv), teacher_logits)

    def _minimized(
        self, batch: Batch, x_adv: Tensor, *, epoch: int
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]:
        objective = self.objective
        teacher_logits = self.teacher.logits(batch.x, batch.rows)
        if isinstance(objective, ArdObjective):
            trust = None
            if isinstance(objective, IadObjective) and epoch >= objective.first_introspective_epoch:
                probabilities = F.softmax(self.teacher.logits(x_adv), dim=1)
                trust = probabilities.gather(1, batch.labels[:, None])[:, 0] ** objective.trust_exponent
            return lambda adversarial, natural: self._ard(
                objective, adversarial, natural, teacher_logits, batch.labels, trust
            )
        if isinstance(objective, RsladGklObjective):
            assert self.weights is not None
            self.weights.record(teacher_logits, batch)
            weights = self.weights.of(teacher_logits, batch.labels)
            return lambda adversarial, natural: _rslad_gkl(objective, adversarial, natural, teacher_logits, weights)
        adversarial_target = self.teacher.logits(x_adv) if isinstance(objective, AdaadObjective) else teacher_logits
        return lambda adversarial, natural: _two_divergences(
            objective, adversarial, natural, adversarial_target, teacher_logits
        )

    def _ard(  # noqa: PLR0917 - one for each letter of the equation
        self,
        objective: ArdObjective,
        adversarial: Tensor,
        natural: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        trust: Tensor | None,
    ) -> tuple[Tensor, Parts]:
        temperature, a = objective.temperature, objective.teacher_weight
        scale = _kl_scale(objective, natural)
        kl = scale * kl_loss(adversarial / temperature, teacher_logits / temperature)
        ce = F.cross_entropy(natural, labels, label_smoothing=self.spec.label_smoothing)
        total = a * temperature**2 * kl + (1 - a) * ce
        if trust is None:
            return total, {"kl": kl, "natural": ce}
        own = F.log_softmax(natural, dim=1)
        each = (own.exp() * (own - F.log_softmax(adversarial, dim=1))).sum(dim=1)
        introspection = scale * ((1 - trust) * each).mean()
        return total + a * introspection, {"kl": kl, "natural": ce, "introspection": introspection}


def _two_divergences(
    objective: RsladObjective | AdaadObjective,
    adversarial: Tensor,
    natural: Tensor,
    adversarial_target: Tensor,
    natural_target: Tensor,
) -> tuple[Tensor, Parts]:
    scale = _kl_scale(objective, natural)
    kl = scale * kl_loss(adversarial, adversarial_target)
    kl_natural = scale * kl_loss(natural, natural_target)
    total = objective.adversarial_weight * kl + objective.natural_weight * kl_natural
    return total, {"kl": kl, "kl_natural": kl_natural}


def _rslad_gkl(
    objective: RsladGklObjective, adversarial: Tensor, natural: Tensor, teacher_logits: Tensor, weights: Tensor
) -> tuple[Tensor, Parts]:
    on_adversarial, parts = pair_loss(objective, adversarial, teacher_logits, weights)
    on_natural, _ = pair_loss(objective, natural, teacher_logits, weights)
    total = objective.adversarial_weight * on_adversarial + objective.natural_weight * on_natural
    return total, {**parts, "gkl_natural": on_natural}


def _kl_scale(objective: ArdObjective | RsladObjective | AdaadObjective, logits: Tensor) -> float:
    """What turns the mean over the batch into the mean that the objective takes."""
    return 1 / logits.shape[1] if objective.kl_mean == "elements" else 1.0
