"""Boards and entries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from gkl.answers.common import Provenance, Schema
from gkl.answers.measurements import EvaluationView, ModelView


class Withdrawal(Schema):
    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]{3,}$")]
    """Shown on the entry's page and board."""


class RankNote(Schema):
    model_config = ConfigDict(extra="forbid")

    note: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]{3,}$")]
    """Why the entry is ranked although its flags bar it; shown on the entry's page."""


class NumberView(Schema):
    """An accuracy of an entry, as a share."""

    accuracy: float = Field(ge=0, le=1)
    interval: tuple[float, float]
    """95 % Wilson interval."""


class ExternalAttackView(Schema):
    """Adversarial examples that somebody sent, and that held."""

    name: str
    submitter: str
    job_id: int
    examples: int
    broken: int
    """Of points that stood until then."""
    created_at: datetime


class Anomaly(BaseModel):
    """Something in a file that is not as it should be. It is kept as it is."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    file: str
    """<data set>/<threat model>/<model id>.json"""
    field: str | None
    """The key it is about; null for the file as a whole."""
    what: str
    """What was found, in words."""


class EntryView(Schema):
    id: int
    dataset: str
    threat_model: str
    model_id: str
    """RobustBench's model id, the name of the file in an export."""
    rank: int | None
    """On the whole board; null if the verdict is provisional, withdrawn, not to be believed, or without a number."""
    rank_band: tuple[int, int] | None = None
    """First and last of the ranks that it may have at 95 % confidence: those of entries that its points or figures do
    not tell apart from it. Null without a rank, on boards of corruptions, and outside boards, entries and exports."""
    provenance: Provenance
    """'verified': measured here; 'imported': by RobustBench; 'reported': by the authors alone."""
    name: str
    authors: str
    link: str
    venue: str
    year: int | None
    architecture: str
    family: str
    loss: str | None
    footnote: str
    """May hold HTML and LaTeX, as RobustBench's do."""
    extra_data: bool | None
    synthetic_data: bool
    epsilon: float | None
    points: int
    """Test images behind the accuracies."""
    num_parameters: int | None
    """Of the network; null where this service does not know the network."""
    clean: NumberView | None
    robust: NumberView | None
    """Best known, by which it ranks: external, else AutoAttack's; on corruptions their mean."""
    autoattack: NumberView | None
    external: NumberView | None
    """What is left after attacks other than AutoAttack."""
    reported: float | None
    """What the authors say, as a share."""
    mean_corruption_error: float | None
    """mCE; for ImageNet relative to AlexNet's errors in arXiv 1903.12261. Null for what was imported."""
    robustbench_mean_corruption_error: float | None
    """mCE as RobustBench has it, relative to the errors of its own AlexNet: from its file, or measured here."""
    corruptions_3d_accuracy: float | None
    """On corruptions in 3D, as a share, where the imported file has it beside the common corruptions or alone."""
    corruptions_3d_error: float | None
    """Its mean error relative to AlexNet's, from the same file."""
    unreliable: bool
    is_provisional: bool
    withdrawn: str | None
    """Why an admin took its rank; null for most entries."""
    unrankable: str | None
    """Why its figure cannot be believed and what its owner can do; null for most entries."""
    rank_note: str | None
    """Why an admin has ranked it all the same."""
    anomalies: list[Anomaly]
    """What is not as it should be in the file it was imported from."""
    weights_id: int | None
    """The model at /api/v1/models/{id}, where its weights are here."""
    evaluation_id: int | None
    """The evaluation it stands with, where it was measured here."""
    created_at: datetime
    changed_at: datetime


class EntryDetail(EntryView):
    external_attacks: list[ExternalAttackView]
    """Those that held, in the order in which they were sent."""
    next_cursor: int | None
    """Send it as `cursor` to get the next of those attacks; null if there are no more."""


class ModelDetail(ModelView):
    evaluations: list[EvaluationView]
    """Newest first."""
    next_cursor: int | None
    """Send it as `cursor` to get the next, older evaluations; null if there are no more."""
    entries: list[EntryView]
    """Its place on each board that it is on."""


class BoardPointView(Schema):
    """A test image, by how many networks of a board lose it."""

    index: int
    """Its place among the test images, from 0."""
    lost_by: int
    """How many of them get it wrong, with an attack or without."""


class BoardPointsView(Schema):
    """The test images of a board, by how many of its networks lose them: of those that were measured here."""

    entries: list[int]
    """The entries whose points are known and that have a rank, the first rank first."""
    counts: list[int]
    """How many images are lost by none of them, by one, ..., by all; empty without such entries."""
    points: list[BoardPointView]
    next_cursor: int | None
    """Send it as `cursor` to get the next of them; null if there are no more."""


class BoardSummary(Schema):
    dataset: str
    threat_model: str
    title: str
    norm: str | None
    epsilon: float | None
    num_entries: int


class BoardDetail(BoardSummary):
    count: int
    """How many entries the view has, on all its pages."""
    entries: list[EntryView]
    """Those of this page of the view, in its order."""
    next_cursor: str | None
    """Send it as `cursor` to get the next page; null on the last one."""


class ModelInfoFiles(Schema):
    """Files of RobustBench's `model_info`, to be imported."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    files: dict[str, str] = Field(
        max_length=10_000, examples=[{"cifar10/Linf/Carmon2019Unlabeled.json": '{"name": "..."}'}]
    )
    """<data set>/<threat model>/<model id>.json -> the file's text, to the letter."""
