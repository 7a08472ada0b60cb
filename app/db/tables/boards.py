"""Models, their evaluations, and the entries of boards."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, String, Text, UniqueConstraint, event
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.tables.base import Base, Id, Json, enum
from app.db.tables.jobs import Job
from gkl.answers import Provenance
from gkl.catalog import BEYOND_AUTOATTACK, attack_name
from gkl.outcome import CorruptionOutcome, broken_beyond_autoattack
from gkl.outcome.corruption_error import robustbench_mean_corruption_error
from gkl.outcome.flags import ON_CLEAN_BOARDS
from gkl.statistics.intervals import wilson_interval

if TYPE_CHECKING:
    from app.db.tables.evidence import ExternalAttack, Report

CLEAN_BOARD = "clean"
"""The name of each data set's board of clean accuracy."""


class Model(Base):
    """A network: an architecture, and its weights in a file that may hold several networks."""

    __tablename__ = "models"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    dataset: Mapped[str] = mapped_column(String(50))
    architecture: Mapped[str] = mapped_column(String(100))
    loss: Mapped[str | None] = mapped_column(String(50))
    """The loss of its training, if this service trained it."""
    weights_sha256: Mapped[str] = mapped_column(String(64))
    """The SHA-256 of the file."""
    weights_key: Mapped[str] = mapped_column(String(200), default="", server_default="")
    """Which network in the file it is, if the file holds several: 'state_dict_ema'; else ''."""
    teacher_architecture: Mapped[str | None] = mapped_column(String(100))
    """Of the network that it learned from, if this service distilled it."""
    teacher_sha256: Mapped[str | None] = mapped_column(String(64))
    """The SHA-256 of the file with that network; of published weights as evaluations record it."""
    teacher_key: Mapped[str] = mapped_column(String(200), default="", server_default="")
    """Which network in that file it is, if the file holds several; else ''."""
    teacher_accuracy: Mapped[float | None]
    """That network's accuracy on the data set's test images."""
    train_job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime]

    evaluations: Mapped[list[Evaluation]] = relationship(back_populates="model", order_by="Evaluation.id")
    train_job: Mapped[Job | None] = relationship()

    __table_args__ = (UniqueConstraint("weights_sha256", "weights_key", "architecture"),)


class Evaluation(Base):
    """One evaluation of a model: under a threat model, under corruptions, or on clean images only."""

    __tablename__ = "evaluations"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), index=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), unique=True)
    """Unique: a job that is finished twice counts once."""
    board: Mapped[str] = mapped_column(String(50))
    norm: Mapped[str | None] = mapped_column(String(10))
    epsilon: Mapped[float | None]
    protocol: Mapped[str] = mapped_column(String(50))
    num_points: Mapped[int]
    is_complete: Mapped[bool]
    """Whether all test images were used; only then is it ranked."""
    is_provisional: Mapped[bool] = mapped_column(default=False)
    """An upper bound from the first attacks, while the others run."""
    clean_correct: Mapped[int]
    robust_correct: Mapped[int | None]
    """Points that withstand all attacks."""
    robust_accuracy: Mapped[float | None]
    """The share of those points; for corruptions the mean accuracy; null for clean images only."""
    mean_corruption_error: Mapped[float | None]
    """mCE; for ImageNet relative to AlexNet's errors in arXiv 1903.12261."""
    corruptions: Mapped[list[Any]] = mapped_column(Json, default=list)
    """`gkl.outcome.CorruptionOutcome` for each corruption at each severity."""
    flags: Mapped[list[Any]] = mapped_column(Json, default=list)
    """`gkl.outcome.Flag` for each reason not to trust the result."""
    checks: Mapped[list[Any]] = mapped_column(Json, default=list, server_default="[]")
    """`gkl.outcome.CheckOutcome` for each check of the network itself; empty if an earlier version evaluated it."""
    checks_seed: Mapped[int | None] = mapped_column(BigInteger)
    """The seed with which the points of those checks were chosen."""
    certificate_sha256: Mapped[str | None] = mapped_column(String(64))
    seconds: Mapped[float]
    manifest: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]

    model: Mapped[Model] = relationship(back_populates="evaluations")
    job: Mapped[Job] = relationship()
    attacks: Mapped[list[AttackResult]] = relationship(
        back_populates="evaluation", order_by="AttackResult.position", cascade="all, delete-orphan"
    )

    __table_args__ = (
        Index("ix_evaluations_board", "board", "is_complete", "model_id"),
        CheckConstraint("0 <= robust_correct AND robust_correct <= clean_correct", name="robust_within_clean"),
        CheckConstraint("clean_correct <= num_points AND num_points > 0", name="clean_within_points"),
    )

    @property
    def clean_accuracy(self) -> float:
        return self.clean_correct / self.num_points

    @property
    def autoattack_accuracy(self) -> float | None:
        """Accuracy under the protocol's own attacks, without additional ones; None without attacks."""
        if self.robust_correct is None:
            return None
        beyond = broken_beyond_autoattack({each.attack: each.broken for each in self.attacks})
        return (self.robust_correct + beyond) / self.num_points

    @property
    def clean_interval(self) -> tuple[float, float]:
        return wilson_interval(self.clean_correct, self.num_points)

    @property
    def robust_interval(self) -> tuple[float, float] | None:
        """The 95 % interval. For corruptions as if they were one pass over the images, since versions of an image are
        not independent."""
        if self.robust_accuracy is None:
            return None
        return wilson_interval(self.robust_accuracy * self.num_points, self.num_points)

    @property
    def robustbench_mean_corruption_error(self) -> float | None:
        """mCE relative to RobustBench's own AlexNet; None except for ImageNet's corruptions."""
        outcomes = [CorruptionOutcome.model_validate(each) for each in self.corruptions]
        return robustbench_mean_corruption_error(self.model.dataset, outcomes) if outcomes else None

    @property
    def is_unreliable(self) -> bool:
        """Whether a flag concerns its accuracy; those about attacks do not concern clean images."""
        return any(self.protocol != "clean" or flag["name"] in ON_CLEAN_BOARDS for flag in self.flags)


class AttackResult(Base):
    """One attack of an evaluation, on the points that withstood all earlier attacks."""

    __tablename__ = "attack_results"

    evaluation_id: Mapped[int] = mapped_column(ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    attack: Mapped[str] = mapped_column(String(50))
    points: Mapped[int]
    broken: Mapped[int]
    seconds: Mapped[float]
    discarded: Mapped[int] = mapped_column(default=0)
    """Misclassified images that it returned outside the threat model; they do not count."""
    loss: Mapped[str | None] = mapped_column(String(20))
    targets: Mapped[int | None]

    evaluation: Mapped[Evaluation] = relationship(back_populates="attacks")

    __table_args__ = (CheckConstraint("0 <= broken AND broken <= points", name="broken_within_points"),)

    @property
    def is_beyond_autoattack(self) -> bool:
        """Whether it ran after the protocol's own attacks."""
        return attack_name(self.attack) in BEYOND_AUTOATTACK

    @property
    def survivors(self) -> int:
        return self.points - self.broken


class Entry(Base):
    """A model on one board, with the columns of RobustBench. Shares, not percent; null means unknown."""

    __tablename__ = "entries"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    dataset: Mapped[str] = mapped_column(String(50))
    board: Mapped[str] = mapped_column(String(50))
    slug: Mapped[str] = mapped_column(String(150))
    """RobustBench's model id: the file's name in an export."""
    provenance: Mapped[Provenance] = mapped_column(enum(Provenance, 20))
    model_id: Mapped[int | None] = mapped_column(ForeignKey("models.id"))
    """The model, if it was evaluated here."""
    evaluation_id: Mapped[int | None] = mapped_column(ForeignKey("evaluations.id"))
    """The evaluation whose results it shows, if it was measured here."""
    source: Mapped[str | None] = mapped_column(Text)
    """The unchanged text of the file that it was imported from."""
    anomalies: Mapped[list[Any]] = mapped_column(Json, default=list)
    """`app.boards.robustbench.Anomaly` for each irregularity in that file."""

    name: Mapped[str] = mapped_column(Text)
    """The paper's title, or the model's own name."""
    authors: Mapped[str] = mapped_column(Text, default="")
    link: Mapped[str] = mapped_column(Text, default="")
    venue: Mapped[str] = mapped_column(Text, default="")
    venue_series: Mapped[str] = mapped_column(Text, default="")
    """The venue without its year: 'NeurIPS'."""
    year: Mapped[int | None]
    architecture: Mapped[str] = mapped_column(Text)
    family: Mapped[str] = mapped_column(Text)
    """The architecture without its size: 'WideResNet'."""
    loss: Mapped[str | None] = mapped_column(String(50))
    footnote: Mapped[str] = mapped_column(Text, default="")
    extra_data: Mapped[bool | None]
    synthetic_data: Mapped[bool] = mapped_column(default=False)
    unreliable: Mapped[bool] = mapped_column(default=False)
    is_provisional: Mapped[bool] = mapped_column(default=False)
    epsilon: Mapped[float | None]
    """The budget stated for this entry; entries of one board may differ."""
    num_points: Mapped[int]
    """Test images behind the accuracies."""
    num_parameters: Mapped[int | None] = mapped_column(BigInteger)
    """The network's number of parameters; null if this service does not know the network."""

    clean_accuracy: Mapped[float | None] = mapped_column()
    autoattack_accuracy: Mapped[float | None]
    external_accuracy: Mapped[float | None]
    """Robust accuracy under attacks other than AutoAttack, if lower."""
    reported_accuracy: Mapped[float | None]
    """The robust accuracy that the authors report."""
    robust_accuracy: Mapped[float | None] = mapped_column()
    """The accuracy by which it ranks: external, else AutoAttack's; on corruptions their mean; null on a board of clean
    accuracy, where `clean_accuracy` ranks."""
    mean_corruption_error: Mapped[float | None]
    """As in its evaluation; null for imported entries."""
    robustbench_mean_corruption_error: Mapped[float | None]
    """mCE relative to RobustBench's own AlexNet; from the file, if it was imported."""
    corruptions_3d_accuracy: Mapped[float | None]
    """Accuracy on corruptions in 3D (arXiv 2203.01441) in the imported file; RobustBench's `corruptions_acc_3d`."""
    corruptions_3d_error: Mapped[float | None]
    """Mean error on corruptions in 3D relative to AlexNet's; RobustBench's `corruptions_mce_3d`."""
    withdrawn_at: Mapped[datetime | None]
    """A withdrawn entry is shown, but has no rank and is not exported."""
    withdrawn_reason: Mapped[str | None] = mapped_column(Text)
    unrankable_reason: Mapped[str | None] = mapped_column(Text)
    """Why its accuracy is not reliable, and what its owner can do; such an entry has no rank."""
    rank_note: Mapped[str | None] = mapped_column(Text)
    """Why an admin has restored its rank anyway."""
    tier: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """0: it may have a rank; 1: barred by its flags; 2: withdrawn. Set from the columns above, see `_keep_tier`."""
    created_at: Mapped[datetime]
    changed_at: Mapped[datetime]

    model: Mapped[Model | None] = relationship()
    evaluation: Mapped[Evaluation | None] = relationship()
    report: Mapped[Report | None] = relationship(back_populates="entry", passive_deletes=True)
    external_attacks: Mapped[list[ExternalAttack]] = relationship(
        back_populates="entry", order_by="ExternalAttack.id", passive_deletes=True
    )

    __table_args__ = (
        UniqueConstraint("dataset", "board", "slug"),
        UniqueConstraint("model_id", "board"),
        # Covers all columns that ranks, charts and the front page read, so that long boards need not read wide rows.
        Index(
            "ix_entries_best",
            *("dataset", "board", "tier", robust_accuracy.desc(), clean_accuracy.desc(), "id"),
            *("is_provisional", "year", "provenance"),
        ),
        Index("ix_entries_revision", "dataset", "board", "id", "changed_at"),
    )

    @property
    def ranked_accuracy(self) -> float | None:
        """The accuracy by which it ranks on its board."""
        return self.clean_accuracy if self.board == CLEAN_BOARD else self.robust_accuracy

    @property
    def is_withdrawn(self) -> bool:
        return self.withdrawn_at is not None

    @property
    def is_barred(self) -> bool:
        """Whether it has no rank because its accuracy is not reliable."""
        return self.unrankable_reason is not None and self.rank_note is None

    def interval_of(self, accuracy: float) -> tuple[float, float]:
        """95 % Wilson interval of one of its accuracies."""
        return wilson_interval(accuracy * self.num_points, self.num_points)


@event.listens_for(Entry, "before_insert")
@event.listens_for(Entry, "before_update")
def _keep_tier(_mapper: object, _connection: object, entry: Entry) -> None:
    """Set `tier` from the texts, which may be too long for an index to sort by them."""
    entry.tier = 2 if entry.is_withdrawn else 1 if entry.is_barred else 0
