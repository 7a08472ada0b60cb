"""The loss of adversarial training: cross-entropy on natural images plus a divergence between natural and adversarial
predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gkl.losses import dkl_loss, gkl_loss, gkl_loss_and_parts, kl_loss
from gkl.spec import DklObjective, GklObjective, IklObjective, TradesObjective
from gkl.training.class_prior import ClassPrior

Objective = TradesObjective | DklObjective | IklObjective | GklObjective


@dataclass(frozen=True)
class ObjectiveValue:
    """The value of the objective on a batch."""

    total: Tensor
    """The scalar to minimize."""
    parts: dict[str, Tensor]
    """Its parts before they are multiplied by their weights, for reports."""


class RobustObjective:
    """The objective that a spec asks for, and the class prior that IKL and GKL keep between epochs."""

    def __init__(
        self, spec: Objective, *, num_classes: int, device: torch.device, label_smoothing: float = 0.0
    ) -> None:
        self.spec = spec
        self.label_smoothing = label_smoothing
        temperature = spec.prior_temperature if isinstance(spec, IklObjective | GklObjective) else 1.0
        self.prior = ClassPrior(num_classes, temperature=temperature, device=device)

    def __call__(
        self,
        adversarial_logits: Tensor,
        natural_logits: Tensor,
        labels: Tensor,
        *,
        second_view_weight: float | None = None,
    ) -> ObjectiveValue:
        """Compute the objective of a batch.

        Args:
            adversarial_logits: (B, C).
            natural_logits: (B, C); gradient flows to both sides, as in the paper's training.
            labels: (B,) int64.
            second_view_weight: weight of the second half's divergence, if the second half of the batch holds second
                views of the images in the first half. The cross-entropy is the mean over both halves. None if the
                batch has one view of each image.
        """
        natural = F.cross_entropy(natural_logits, labels, label_smoothing=self.label_smoothing)
        if second_view_weight is None:
            robust, parts = self._divergence(adversarial_logits, natural_logits, labels)
        else:
            half = len(labels) // 2
            robust, parts = self._divergence(adversarial_logits[:half], natural_logits[:half], labels[:half])
            second, _ = self._divergence(adversarial_logits[half:], natural_logits[half:], labels[half:])
            robust = robust + second_view_weight * second
        return ObjectiveValue(natural + robust, {"natural": natural, **parts})

    def _divergence(self, adversarial: Tensor, natural: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        spec = self.spec
        if isinstance(spec, TradesObjective):
            kl = kl_loss(adversarial, natural)
            return spec.kl_weight * kl, {"kl": kl}
        if isinstance(spec, DklObjective):
            dkl = dkl_loss(adversarial, natural)
            return spec.kl_weight * dkl, {"dkl": dkl}
        # IKL is GKL with gamma 1: since the prior's rows sum to 1, GKL's divisor equals the number of samples.
        gamma = spec.gamma if isinstance(spec, GklObjective) else 1.0
        loss, wmse, ce = gkl_loss_and_parts(
            adversarial,
            natural,
            self.prior.of(labels),
            wmse_weight=spec.wmse_weight,
            ce_weight=spec.ce_weight,
            gamma=gamma,
        )
        return loss, {"ce": ce, "wmse": wmse}

    def inner(self, natural_logits: Tensor, labels: Tensor, wmse_weight: float) -> InnerLoss:
        """Return the loss that the inner maximization increases, for images with these natural logits and labels."""
        return InnerLoss(natural_logits, self.prior.of(labels), wmse_weight)


class InnerLoss:
    """The loss that the inner maximization increases: cross-entropy to the natural prediction as soft label, plus wMSE.

    The natural logits are computed once per batch, since the model does not change during the inner maximization.
    """

    def __init__(self, natural_logits: Tensor, weights: Tensor, wmse_weight: float) -> None:
        """
        Args:
            natural_logits: (B, C).
            weights: (B, C), the class prior's row of each sample's label.
            wmse_weight: weight of the wMSE part; the cross-entropy part has weight 1.
        """
        self.natural_logits = natural_logits.detach()
        self.weights = weights
        self.wmse_weight = wmse_weight

    def __call__(self, adversarial_logits: Tensor) -> Tensor:
        return gkl_loss(
            adversarial_logits, self.natural_logits, self.weights, wmse_weight=self.wmse_weight, ce_weight=1.0
        )
