"""Answers about boards and entries, and requests that change them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from gkl.answers.common import Provenance, Schema
from gkl.answers.measurements import EvaluationView, ModelView, TeacherView


class Withdrawal(Schema):
    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]{3,}$")]
    """Shown on the entry's page and board."""


class RankNote(Schema):
    model_config = ConfigDict(extra="forbid")

    note: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]{3,}$")]
    """Why the entry is ranked in spite of its flags; shown on the entry's page."""


class NumberView(Schema):
    """An accuracy of an entry, in [0, 1]."""

    accuracy: float = Field(ge=0, le=1)
    interval: tuple[float, float]
    """95 % Wilson interval."""


class ExternalAttackView(Schema):
    """Submitted adversarial examples that the service confirmed."""

    name: str
    submitter: str
    job_id: int
    examples: int
    broken: int
    """Points that had been robust until then and that these examples broke."""
    created_at: datetime


class Anomaly(BaseModel):
    """An irregularity in an imported file. The value is kept as it is."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    file: str
    """<data set>/<threat model>/<model id>.json"""
    field: str | None
    """The key with the irregularity; null for the file as a whole."""
    what: str
    """What was found, in a sentence."""


class EntryView(Schema):
    id: int
    dataset: str
    threat_model: str
    model_id: str
    """RobustBench's model id, which names the file in an export."""
    rank: int | None
    """Rank on the whole board; null if the entry is provisional, withdrawn, unrankable or without an accuracy."""
    rank_band: tuple[int, int] | None = None
    """First and last rank that it may have at 95 % confidence: those of the entries that do not differ significantly
    from it. Null if it has no rank, on boards of corruptions, and in answers other than boards, entries and exports."""
    provenance: Provenance
    """Who measured it. 'verified': this service; 'imported': RobustBench; 'reported': the authors alone."""
    name: str
    authors: str
    link: str
    venue: str
    year: int | None
    architecture: str
    family: str
    loss: str | None
    footnote: str
    """May contain HTML and LaTeX, as in RobustBench."""
    extra_data: bool | None
    synthetic_data: bool
    epsilon: float | None
    points: int
    """Test images behind the accuracies."""
    num_parameters: int | None
    """Parameters of the network; null if this service does not know the network."""
    clean: NumberView | None
    """Accuracy on clean images, which ranks the entry on a board of clean accuracy."""
    robust: NumberView | None
    """The accuracy that ranks the entry on other boards: `external`, else `autoattack`; on corruptions the mean over
    them. Null on boards of clean accuracy."""
    autoattack: NumberView | None
    external: NumberView | None
    """Robust accuracy after attacks other than AutoAttack too."""
    reported: float | None
    """The authors' own figure, in [0, 1]."""
    mean_corruption_error: float | None
    """mCE; for ImageNet relative to AlexNet's errors in arXiv 1903.12261. Null for imported entries."""
    robustbench_mean_corruption_error: float | None
    """mCE as RobustBench computes it, relative to its own AlexNet's errors: from its file, or measured here."""
    corruptions_3d_accuracy: float | None
    """Accuracy on 3D corruptions, in [0, 1], if the imported file has it."""
    corruptions_3d_error: float | None
    """Mean error on 3D corruptions relative to AlexNet's, if the imported file has it."""
    unreliable: bool
    """Whether its evaluation has flags, or RobustBench marks it as unreliable."""
    is_provisional: bool
    """Whether the accuracy is an upper bound from the first attacks, while the others run."""
    withdrawn: str | None
    """Why an admin withdrew its rank; null for most entries."""
    unrankable: str | None
    """Why its accuracy cannot be trusted and what its owner can do; null for most entries."""
    rank_note: str | None
    """Why an admin ranked it in spite of its flags; null for most entries."""
    anomalies: list[Anomaly]
    """Irregularities in the file it was imported from."""
    weights_id: int | None
    """The model at /api/v1/models/{id}, if its weights are on this service."""
    evaluation_id: int | None
    """The evaluation that this entry shows, if it was measured on this service."""
    teacher: TeacherView | None = None
    """The network that it learned from, if this service distilled it."""
    created_at: datetime
    changed_at: datetime


class EntryDetail(EntryView):
    external_attacks: list[ExternalAttackView]
    """Confirmed external attacks, in the order in which they were submitted."""
    next_cursor: int | None
    """Send it as `cursor` to get the next of those attacks; null if there are no more."""


class ModelDetail(ModelView):
    evaluations: list[EvaluationView]
    """Newest first."""
    next_cursor: int | None
    """Send it as `cursor` to get the next, older evaluations; null if there are no more."""
    entries: list[EntryView]
    """The model's entry on each board that has one."""


class BoardPointView(Schema):
    """A test image, and how many of a board's networks get it wrong."""

    index: int
    """Its index among the test images, from 0."""
    lost_by: int
    """How many networks get it wrong, under attack or not."""


class BoardPointsView(Schema):
    """The test images of a board, by how many of the networks measured on this service get them wrong."""

    entries: list[int]
    """The ranked entries whose outcome is known for each point, in the order of their ranks."""
    counts: list[int]
    """Number of images that none of these entries gets wrong, that one gets wrong, ..., that all get wrong; empty if
    there are no such entries."""
    points: list[BoardPointView]
    next_cursor: int | None
    """Send it as `cursor` to get the next points; null if there are no more."""


class BoardSummary(Schema):
    dataset: str
    threat_model: str
    title: str
    norm: str | None
    epsilon: float | None
    num_entries: int


class BoardDetail(BoardSummary):
    count: int
    """Number of entries on all pages, after filtering."""
    entries: list[EntryView]
    """The entries of this page, in order."""
    next_cursor: str | None
    """Send it as `cursor` to get the next page; null on the last one."""


class ModelInfoFiles(Schema):
    """Files of RobustBench's `model_info`, to be imported."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    files: dict[str, str] = Field(
        max_length=10_000, examples=[{"cifar10/Linf/Carmon2019Unlabeled.json": '{"name": "..."}'}]
    )
    """Path, as <data set>/<threat model>/<model id>.json -> the file's exact text."""
