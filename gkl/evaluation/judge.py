"""The rules for adversarial examples in evaluations and certificates, whether found, sent by users, or replayed.

An example breaks a point if it lies in the threat model's ball around the clean image and in the box [0, 1], and the
network misclassifies it. This module has all these rules, and the messages that say which one an example fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gkl.attacks.classifier import NO_CLASS, predicted_classes
from gkl.attacks.perturbation import is_allowed, norm_tolerance
from gkl.spec import ThreatModel, format_epsilon

IS_RIGHT = "the model gets its adversarial image right"
# Rounding differs between processors and batch sizes. If two logits differ by less than 256 of float32's units in the
# last place, relative to the largest logit, rounding may decide which one is higher.
_ROUNDING = 256 * 2.0**-23


@dataclass(frozen=True)
class Judged:
    """The judgement of K examples."""

    allowed: Tensor
    """(K,) bool: inside ball and box."""
    size: Tensor
    """(K,) float64: distances to the clean images, in the threat model's norm."""
    prediction: Tensor
    """(K,) int64; `NO_CLASS` where the model answered NaN."""
    labels: Tensor
    """(K,) int64."""

    @classmethod
    def joined(cls, parts: Sequence[Judged]) -> Judged:
        """Join the judgements of several batches; an empty sequence gives one of zero examples."""
        return cls(
            torch.cat([torch.zeros(0, dtype=torch.bool), *(part.allowed for part in parts)]),
            torch.cat([torch.zeros(0, dtype=torch.float64), *(part.size for part in parts)]),
            torch.cat([torch.zeros(0, dtype=torch.int64), *(part.prediction for part in parts)]),
            torch.cat([torch.zeros(0, dtype=torch.int64), *(part.labels for part in parts)]),
        )

    @property
    def fools(self) -> Tensor:
        """(K,) bool: the model misclassifies the example, allowed or not. NaN counts as misclassified."""
        return self.prediction != self.labels

    @property
    def breaks(self) -> Tensor:
        """(K,) bool: allowed and misclassified."""
        return self.allowed & self.fools

    def chosen(self, which: Tensor) -> Judged:
        """The judgements that a mask (K,) selects."""
        return Judged(self.allowed[which], self.size[which], self.prediction[which], self.labels[which])

    def faults(self, adversarial: Tensor, threat_model: ThreatModel, *, must_fool: bool) -> list[tuple[int, str]]:
        """Row and message of each example that fails, in order of the rows; the message follows 'point 7: '.

        Args:
            adversarial: the examples (K, channels, height, width).
            threat_model: the one by which they were judged.
            must_fool: whether an allowed example that the model classifies correctly fails too.
        """
        fails = ~self.allowed | (~self.fools if must_fool else torch.zeros_like(self.allowed))
        return [
            (i, IS_RIGHT if self.allowed[i] else _why_not_allowed(adversarial[i], float(self.size[i]), threat_model))
            for i in fails.nonzero().squeeze(1).tolist()
        ]


def judge(adversarial: Tensor, clean: Tensor, labels: Tensor, prediction: Tensor, threat_model: ThreatModel) -> Judged:
    """Judge K examples.

    Args:
        adversarial: (K, channels, height, width), on any device.
        clean: their clean images, of the same shape, in [0, 1].
        labels: (K,) int64.
        prediction: (K,) int64: the classes that the model gave the examples.
        threat_model: the ball around the clean images.
    """
    allowed, size = is_allowed(adversarial, clean, threat_model)
    return Judged(allowed, size, prediction, labels)


def _why_not_allowed(adversarial: Tensor, size: float, threat_model: ThreatModel) -> str:
    """The reason why an image (channels, height, width) at this distance is not allowed."""
    if not torch.isfinite(adversarial).all():
        return "its adversarial image has values that are no numbers"
    if size <= threat_model.epsilon + norm_tolerance(threat_model, adversarial.numel()):
        return f"its adversarial image has values from {adversarial.min():g} to {adversarial.max():g}, outside [0, 1]"
    return (
        f"its adversarial image is {size:.6g} away in {threat_model.norm}, further than epsilon "
        f"{format_epsilon(threat_model.epsilon)}"
    )


@dataclass(frozen=True)
class Compared:
    """A model's answers to B images, compared with a certificate's answers to the same images."""

    found: Tensor
    """(B,) int64: the predicted classes; `NO_CLASS` where the answer is NaN."""
    recorded: Tensor
    """(B,) int64: the classes in the certificate."""
    is_close: Tensor
    """(B,) bool: the logit of the recorded class is so close to the highest that rounding explains a difference."""

    @property
    def borderline(self) -> int:
        """The number of answers that differ from the record because of rounding alone."""
        return int(((self.found != self.recorded) & self.is_close).sum())

    @property
    def in_favour(self) -> Tensor:
        """(B,) int64: the recorded class where rounding explains a difference, else the predicted one."""
        return self.found.where(~self.is_close, self.recorded)

    def differences(self, what: str) -> list[tuple[int, str]]:
        """Row and message of each difference that rounding does not explain; `what` names the images, as 'clean'."""
        return [
            (
                i,
                f"the model answers {int(self.found[i])} to its {what} image, and its certificate says "
                f"{int(self.recorded[i])}",
            )
            for i in ((self.found != self.recorded) & ~self.is_close).nonzero().squeeze(1).tolist()
        ]


def compare_with_record(logits: Tensor, recorded: Tensor) -> Compared:
    """Compare a model's answers with recorded ones.

    Args:
        logits: (B, C) float32.
        recorded: classes (B,); `NO_CLASS` where the model returned NaN.
    """
    found = predicted_classes(logits)
    own = logits.gather(1, recorded.clamp(min=0, max=logits.shape[1] - 1)[:, None]).squeeze(1)
    close = (logits.amax(1) - own) <= _ROUNDING * logits.abs().amax(1).clamp_min(1e-30)
    close &= (found != NO_CLASS) & (recorded >= 0) & (recorded < logits.shape[1])
    return Compared(found, recorded, close)
