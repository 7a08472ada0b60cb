"""What came of adversarial examples and certificates that somebody sent."""

from __future__ import annotations

from typing import Any, Literal

from gkl.outcome.common import Record
from gkl.outcome.evaluation import Flag
from gkl.statistics.intervals import wilson_interval


class ExternalOutcome(Record):
    """The result of checking adversarial examples that somebody sent; every example passed the check."""

    type: Literal["external"] = "external"
    attack: str
    examples: int
    """Examples that were sent and checked."""
    broken: int
    """Points that had survived until then and that these examples break."""
    robust_correct: int
    """Points that survive these examples too."""
    base_sha256: str
    """Of the certificate that they were merged with."""
    certificate: str | None = None
    """File name of the merged certificate, relative to the run's directory; null if nothing new was broken."""
    device: str
    seconds: float


class ReportOutcome(Record):
    """Somebody's certificate of their own network, which agrees with itself and with the data."""

    type: Literal["report"] = "report"
    evaluation: dict[str, Any]
    """The spec of the evaluation that it says it is of."""
    attacks: tuple[str, ...]
    """Those that it says were tried."""
    num_points: int
    clean_correct: int
    robust_correct: int
    """Points that no example in it breaks, if the network answers as it says."""
    weights_sha256: str
    """What it says that its owner's weights hash to."""
    flags: tuple[Flag, ...] = ()
    """Reasons not to trust it that its owner's run found."""
    seconds: float


class TransferCounts(Record):
    """Adversarial examples that were made for one network, tried on another."""

    examples: int
    """Examples that were tried."""
    clean_correct: int
    """Those whose clean image the other network gets right."""
    broken: int
    """Those of `clean_correct` whose adversarial image it gets wrong."""

    @property
    def share(self) -> float | None:
        """Of the examples whose clean image the other network gets right, those that break it; None without any."""
        return self.broken / self.clean_correct if self.clean_correct else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the share."""
        return wilson_interval(self.broken, self.clean_correct)


class TransferByAttack(TransferCounts):
    attack: str
    """The attack that found these examples."""


class TransferOutcome(TransferCounts):
    """What the adversarial examples of one entry do to another."""

    type: Literal["transferred"] = "transferred"
    attacks: tuple[TransferByAttack, ...]
    """The same for each attack that found examples, in their order."""
    answers_vary: bool
    """The other network's answers vary, so the counts are valid for this run only."""
    merged: ExternalOutcome
    """What they add to the other entry's certificate: its `broken` counts points that had survived until then."""
    seconds: float
