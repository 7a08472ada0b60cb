"""Answers about comparisons of entries, and about adversarial examples of one entry that are tried on another."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ConfigDict, Field

from gkl.answers.boards import EntryView
from gkl.answers.common import JobState, Schema


class PairView(Schema):
    """Two entries of one board: whether one is better than the other."""

    first_id: int
    second_id: int
    sentence: str
    """The result in words, with the interval and the p-value."""
    is_paired: bool
    """Whether they were compared point by point; otherwise by their accuracies alone, as if on different images."""
    points: int
    """Points of the first entry; if `is_paired`, the second entry has the same ones."""
    both: int | None
    """Points that both entries get right, under every attack unless the board is one of clean accuracy; null if not
    paired."""
    only_first: int | None
    """Points that only the first entry gets right; null if not paired."""
    only_second: int | None
    """Points that only the second entry gets right; null if not paired."""
    neither: int | None
    """Points that neither entry gets right; null if not paired."""
    difference: float
    """The accuracy by which the first entry ranks minus that of the second, in [-1, 1]."""
    interval: tuple[float, float]
    """95 % confidence interval of the difference: Tango's score interval if paired, else Newcombe's."""
    p_value: float
    """Two-sided p-value: of McNemar's exact test if paired, else of the score test of two proportions."""
    is_told_apart: bool
    """Whether the p-value is below 0.05."""


class TransferCountsView(Schema):
    """Adversarial examples of one entry, tried on the network of another."""

    examples: int
    """Number of examples that were tried."""
    clean_correct: int
    """Examples whose clean image the other network classifies correctly."""
    broken: int
    """Those of `clean_correct` whose adversarial image it misclassifies."""
    share: float | None = Field(ge=0, le=1)
    """`broken` / `clean_correct`; null if `clean_correct` is 0."""
    interval: tuple[float, float]
    """95 % Wilson interval of the share."""


class TransferByAttackView(TransferCountsView):
    attack: str
    """The attack that found these examples."""


class TransferView(Schema):
    """How many adversarial examples of one entry break another: a requested or finished measurement."""

    id: int
    source_id: int
    """The entry that the examples are from."""
    target_id: int
    """The entry on whose network they are tried."""
    job_id: int
    state: JobState
    """State of the job."""
    submitter: str
    created_at: datetime
    is_current: bool
    """Whether the examples are from the certificate that the source entry shows now."""
    counts: TransferCountsView | None
    """The result; null until the job has succeeded."""
    attacks: list[TransferByAttackView]
    """The result for each attack that found examples for the source."""
    newly_broken: int = 0
    """Points of the target that had been robust and that the examples broke: they lower its `external` accuracy."""
    answers_vary: bool = False
    """Whether the target's answers are random, so that another run would give other counts."""


class PairTransferView(Schema):
    """Whether what breaks one of two entries breaks the other."""

    source_id: int
    target_id: int
    sentence: str | None
    """The result in words; null if there is none yet."""
    measured: TransferView | None
    """The newest measurement."""
    job_id: int | None
    """The job that measures it now; null if there is none."""
    can_be_measured: bool
    """Whether `POST /api/v1/entries/{target_id}/transfers` accepts it now."""
    why_not: str | None
    """Why the transfer cannot be measured; null if it can."""


class TransferRequest(Schema):
    """A request to try one entry's adversarial examples on another entry."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    source: int = Field(ge=1, le=2**63 - 1, examples=[3])
    """Id of the entry that the examples are from."""


class SpecDifference(Schema):
    """A field in which the specs differ."""

    field: str
    """Path of the field, such as 'train.objective.ce_weight' or 'evaluate.protocol'."""
    values: list[Any]
    """Each entry's value, in the order of the entries; null if it is unknown or the spec has none."""


class ComparisonView(Schema):
    """A comparison of 2 to 4 entries."""

    entries: list[EntryView]
    pairs: list[PairView]
    """Every pair of entries of one board of attacks whose accuracies are known."""
    differences: list[SpecDifference]
    transfers: list[PairTransferView]
    """For each ordered pair of entries, whether the adversarial examples of the first break the second."""
