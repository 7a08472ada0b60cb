"""What a training step minimizes: cross-entropy on natural images plus a divergence to the adversarial ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gkl.class_prior import ClassPrior
from gkl.losses import gkl_loss, kl_loss
from gkl.spec import GklObjective, TradesObjective


class RobustObjective:
    """The objective of a spec, with the class prior that GKL keeps between epochs."""

    def __init__(self, spec: GklObjective | TradesObjective, *, num_classes: int, device: torch.device) -> None:
        self.spec = spec
        temperature = spec.prior_temperature if isinstance(spec, GklObjective) else 1.0
        self.prior = ClassPrior(num_classes, temperature=temperature, device=device)

    def __call__(self, adversarial_logits: Tensor, natural_logits: Tensor, labels: Tensor) -> Tensor:
        """(B, C), (B, C), (B,) -> scalar; gradient flows to both sides, as in the paper's training."""
        natural = F.cross_entropy(natural_logits, labels)
        if isinstance(self.spec, TradesObjective):
            return natural + self.spec.kl_weight * kl_loss(adversarial_logits, natural_logits)
        self.prior.accumulate(natural_logits, labels)
        return natural + gkl_loss(
            adversarial_logits,
            natural_logits,
            self.prior.of(labels),
            wmse_weight=self.spec.wmse_weight,
            ce_weight=self.spec.ce_weight,
            gamma=self.spec.gamma,
        )

    def inner(self, natural_logits: Tensor, labels: Tensor, wmse_weight: float) -> InnerLoss:
        return InnerLoss(natural_logits, self.prior.of(labels), wmse_weight)


class InnerLoss:
    """What the inner maximization increases: soft cross-entropy to the natural prediction, plus wMSE.

    The natural logits are computed once per batch: the model stands still meanwhile, so computing them
    again at every step would give the same numbers.
    """

    def __init__(self, natural_logits: Tensor, weights: Tensor, wmse_weight: float) -> None:
        self.natural_logits = natural_logits.detach()
        self.weights = weights
        self.wmse_weight = wmse_weight

    def __call__(self, adversarial_logits: Tensor) -> Tensor:
        return gkl_loss(
            adversarial_logits, self.natural_logits, self.weights, wmse_weight=self.wmse_weight, ce_weight=1.0
        )
