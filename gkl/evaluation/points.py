"""The outcome of each point of an evaluation, which a certificate proves, and the measurement that contains it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gkl.outcome import AttackOutcome, CheckOutcome, Flag
from gkl.outcome.flags import unrankable

STANDS, MISCLASSIFIED = -1, -2
"""Values of `Points.broken_by`: no attack broke the point; its clean image is misclassified."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """The outcome of each of N points, of which attacks broke M."""

    labels: Tensor
    """(N,) int64."""
    prediction: Tensor
    """(N,) int64: the predicted class of the clean image."""
    broken_by: Tensor
    """(N,) int64: the position of the attack that broke the point, or STANDS, or MISCLASSIFIED."""
    perturbation_norm: Tensor
    """(N,) float64: distance between the clean image and its adversarial example, NaN where there is none."""
    index: Tensor
    """(M,) int64: the broken points, in rising order."""
    adversarial: Tensor
    """(M, channels, height, width) float32 in [0, 1]: their adversarial examples."""
    adversarial_prediction: Tensor
    """(M,) int64: the predicted classes of the adversarial examples; -1 where the model returned NaN."""
    answers_vary: bool
    """Whether the model's answers change from call to call, or with the other images of a batch."""

    @property
    def num_points(self) -> int:
        return len(self.labels)

    @property
    def clean_correct(self) -> int:
        return int((self.broken_by != MISCLASSIFIED).sum())

    @property
    def robust_correct(self) -> int:
        return int((self.broken_by == STANDS).sum())


@dataclass(frozen=True, kw_only=True)
class Measurement(Points):
    """The outcome of each point, and what the attacks and the checks of the network found."""

    attacks: list[AttackOutcome]
    flags: list[Flag]
    device: str
    """Name of the processor or GPU; several, joined by commas, if parts were run on several."""
    batch_size_used: int
    """The most images that the model was given at once; if parts differ, the smallest of these."""
    seconds: float
    """Working time of all parts, including those finished before an interruption."""
    checks: list[CheckOutcome] = field(default_factory=list)
    """The checks of the network itself, also those that could not run."""
    checks_seed: int | None = None
    """Seed of the points that the checks used, drawn anew in each run; None if they did not run."""

    @property
    def attack_titles(self) -> list[str]:
        """Titles of the attacks in the certificate, in the order of `broken_by`."""
        return [attack.attack for attack in self.attacks]

    @property
    def unrankable(self) -> str | None:
        """Why the result gets no rank, in a sentence or two; None if no flag bars one."""
        return unrankable(self.flags)
