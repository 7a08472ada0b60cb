"""The results of checking adversarial examples and certificates that users sent."""

from __future__ import annotations

from typing import Any, Literal

from gkl.outcome.common import Record
from gkl.outcome.evaluation import Flag
from gkl.statistics.intervals import wilson_interval


class ExternalOutcome(Record):
    """The result of checking adversarial examples that a user sent; every example passed the check."""

    type: Literal["external"] = "external"
    attack: str
    examples: int
    """Examples that were sent and checked."""
    broken: int
    """Points that nothing had broken before and that these examples break."""
    robust_correct: int
    """Points that survive these examples too."""
    base_sha256: str
    """sha256 of the certificate that they were merged into."""
    certificate: str | None = None
    """File name of the merged certificate, relative to the run's directory; null if nothing new was broken."""
    device: str
    seconds: float


class ReportOutcome(Record):
    """The result of checking a certificate of a user's own network; it is consistent with itself and with the data."""

    type: Literal["report"] = "report"
    evaluation: dict[str, Any]
    """The spec of the evaluation, as the certificate states it."""
    attacks: tuple[str, ...]
    """Titles of the attacks that were run, as the certificate states them."""
    num_points: int
    clean_correct: int
    robust_correct: int
    """Points that no example in the certificate breaks, if the network answers as the certificate states."""
    weights_sha256: str
    """sha256 of the owner's weights, as the certificate states it."""
    flags: tuple[Flag, ...] = ()
    """Reasons not to trust the result that the owner's run found."""
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
        """`broken` as a share of `clean_correct`; None if that is 0."""
        return self.broken / self.clean_correct if self.clean_correct else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the share."""
        return wilson_interval(self.broken, self.clean_correct)


class TransferByAttack(TransferCounts):
    attack: str
    """The attack that found these examples."""


class TransferOutcome(TransferCounts):
    """The result of trying the adversarial examples of one entry on another."""

    type: Literal["transferred"] = "transferred"
    attacks: tuple[TransferByAttack, ...]
    """The same counts for each attack that found examples, in the order of the attacks."""
    answers_vary: bool
    """The other network's answers vary, so the counts are valid for this run only."""
    merged: ExternalOutcome
    """What they add to the other entry's certificate; its `broken` counts points that nothing had broken before."""
    seconds: float
