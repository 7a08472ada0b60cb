"""Entries side by side, and examples of one tried on another."""

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
    """What was found, with the interval and the p-value."""
    is_paired: bool
    """Whether they were compared point by point; else by their accuracies alone, as if on different images."""
    points: int
    """Points of the first; the same ones as the second's where `is_paired`."""
    both: int | None
    """Points that withstand every attack on both; null where it is not paired."""
    only_first: int | None
    only_second: int | None
    neither: int | None
    difference: float
    """Robust accuracy of the first minus that of the second, as a share."""
    interval: tuple[float, float]
    """95 % interval of the difference: Tango's score interval, or Newcombe's where it is not paired."""
    p_value: float
    """Of McNemar's exact test, or of the score test of two shares."""
    is_told_apart: bool
    """Whether the p-value is below 0.05."""


class TransferCountsView(Schema):
    """Adversarial examples of one entry, tried on the network of another."""

    examples: int
    """Examples that were tried."""
    clean_correct: int
    """Those whose clean image the other network gets right."""
    broken: int
    """Those of `clean_correct` whose adversarial image it gets wrong."""
    share: float | None = Field(ge=0, le=1)
    """`broken` of `clean_correct`; null where that is 0."""
    interval: tuple[float, float]
    """95 % Wilson interval of the share."""


class TransferByAttackView(TransferCountsView):
    attack: str
    """The attack that found these examples."""


class TransferView(Schema):
    """How many adversarial examples of one entry break another: asked for, and, once its job has ended, measured."""

    id: int
    source_id: int
    """The entry whose examples they are."""
    target_id: int
    """The entry on whose network they are tried."""
    job_id: int
    state: JobState
    """Of the job."""
    submitter: str
    created_at: datetime
    is_current: bool
    """Whether the source still stands with the certificate whose examples these are."""
    counts: TransferCountsView | None
    """Null until it is measured."""
    attacks: list[TransferByAttackView]
    """The same for each attack that found examples for the source."""
    newly_broken: int = 0
    """Those that broke points of the target that had stood: they lower its `external` accuracy."""
    answers_vary: bool = False
    """The target answers differently each time, so that the counts are those of this run alone."""


class PairTransferView(Schema):
    """Whether what breaks one of two entries breaks the other."""

    source_id: int
    target_id: int
    sentence: str | None
    """What was found; null while nothing is measured."""
    measured: TransferView | None
    """The newest."""
    job_id: int | None
    """The job that measures it now; null if none does."""
    can_be_measured: bool
    """Whether `POST /api/v1/entries/{target_id}/transfers` takes it now."""
    why_not: str | None
    """Why the two cannot be measured as they are; null if they can."""


class TransferRequest(Schema):
    """Which examples to try on an entry."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    source: int = Field(ge=1, le=2**63 - 1, examples=[3])
    """Number of the entry whose adversarial examples they are."""


class SpecDifference(Schema):
    """A field in which the specs differ."""

    field: str
    """'train.objective.ce_weight', 'evaluate.protocol'."""
    values: list[Any]
    """Of each entry, in their order; null where it is not known here, or its spec has none."""


class ComparisonView(Schema):
    """Entries side by side."""

    entries: list[EntryView]
    pairs: list[PairView]
    """Every two of one board of attacks of which points or figures are known."""
    differences: list[SpecDifference]
    transfers: list[PairTransferView]
    """For each entry on each other, whether its adversarial examples break that one too."""
