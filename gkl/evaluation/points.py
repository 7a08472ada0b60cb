"""What became of each point of an evaluation: the table that a certificate proves, and the measurement around it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gkl.outcome import AttackOutcome, CheckOutcome, Flag
from gkl.outcome.flags import unrankable

STANDS, MISCLASSIFIED = -1, -2
"""What `Points.broken_by` says of a point that no attack broke, and of one that needed none."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """The outcome point by point. N points, of which M were broken by attacks."""

    labels: Tensor
    """(N,) int64."""
    prediction: Tensor
    """(N,) int64: the class of the clean image."""
    broken_by: Tensor
    """(N,) int64: the attack's position in their order, or STANDS, or MISCLASSIFIED."""
    perturbation_norm: Tensor
    """(N,) float64: distance of the adversarial example that broke the point, NaN where there is none."""
    index: Tensor
    """(M,) int64: the broken points, rising."""
    adversarial: Tensor
    """(M, channels, height, width) float32 in [0, 1]: their adversarial examples."""
    adversarial_prediction: Tensor
    """(M,) int64: the classes of those; -1 where the model answered NaN."""
    answers_vary: bool
    """The model answers differently each time, or depending on the rest of a batch."""

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
    """The outcome point by point, with what the attacks and the checks of the network found."""

    attacks: list[AttackOutcome]
    flags: list[Flag]
    device: str
    """Name of the processor or GPU; of all, where parts were run on several."""
    batch_size_used: int
    """Most images that the model was given at once."""
    seconds: float
    """Working time of all parts, also of those before an interruption."""
    checks: list[CheckOutcome] = field(default_factory=list)
    """What was checked of the network itself, and what could not be."""
    checks_seed: int | None = None
    """Seed of the points that the checks looked at, made for the run; None if they did not run."""

    @property
    def attack_titles(self) -> list[str]:
        """What a certificate calls the attacks, in the order of `broken_by`."""
        return [attack.attack for attack in self.attacks]

    @property
    def unrankable(self) -> str | None:
        """Why the figure cannot be believed, in a sentence or two; None if nothing speaks against it."""
        return unrankable(self.flags)
