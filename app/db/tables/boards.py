"""Models, their evaluations, and the entries of boards."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, String, Text, UniqueConstraint, event
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.tables.base import Base, Id, Json, enum
from app.db.tables.jobs import Job
from gkl.answers import Provenance
from gkl.outcome import CorruptionOutcome, broken_beyond_autoattack
from gkl.outcome.corruption_error import robustbench_mean_corruption_error
from gkl.statistics.intervals import wilson_interval

if TYPE_CHECKING:
    from app.db.tables.evidence import ExternalAttack, Report


class Model(Base):
    """One network with its weights: an architecture with a file, or with one of several networks in it."""

    __tablename__ = "models"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    dataset: Mapped[str] = mapped_column(String(50))
    architecture: Mapped[str] = mapped_column(String(100))
    loss: Mapped[str | None] = mapped_column(String(50))
    """The objective it was trained with, where this service trained it."""
    weights_sha256: Mapped[str] = mapped_column(String(64))
    """Of the file."""
    weights_key: Mapped[str] = mapped_column(String(200), default="", server_default="")
    """Which network of the file it is, where that holds several: 'state_dict_ema'; else ''."""
    train_job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime]

    evaluations: Mapped[list[Evaluation]] = relationship(back_populates="model", order_by="Evaluation.id")
    train_job: Mapped[Job | None] = relationship()

    __table_args__ = (UniqueConstraint("weights_sha256", "weights_key", "architecture"),)


class Evaluation(Base):
    """One measurement of a model: under a threat model, under corruptions, or on clean images alone."""

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
    """Whether all test images were taken; only then is it ranked."""
    is_provisional: Mapped[bool] = mapped_column(default=False)
    """An upper bound from the first attacks, while the others run."""
    clean_correct: Mapped[int]
    robust_correct: Mapped[int | None]
    """Points that stand after all attacks."""
    robust_accuracy: Mapped[float | None]
    """The share of those; for corruptions the mean accuracy; null for clean images alone."""
    mean_corruption_error: Mapped[float | None]
    """mCE; for ImageNet relative to AlexNet's errors in arXiv 1903.12261."""
    corruptions: Mapped[list[Any]] = mapped_column(Json, default=list)
    """`gkl.outcome.CorruptionOutcome` for each corruption in each severity."""
    flags: Mapped[list[Any]] = mapped_column(Json, default=list)
    """`gkl.outcome.Flag` for each reason not to trust it."""
    checks: Mapped[list[Any]] = mapped_column(Json, default=list, server_default="[]")
    """`gkl.outcome.CheckOutcome` for each check of the network itself; empty in measurements of earlier versions."""
    checks_seed: Mapped[int | None] = mapped_column(BigInteger)
    """Seed of the points that those checks looked at."""
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
        """What the protocol's own attacks left, before those beyond it; None without attacks."""
        if self.robust_correct is None:
            return None
        beyond = broken_beyond_autoattack({each.attack: each.broken for each in self.attacks})
        return (self.robust_correct + beyond) / self.num_points

    @property
    def clean_interval(self) -> tuple[float, float]:
        return wilson_interval(self.clean_correct, self.num_points)

    @property
    def robust_interval(self) -> tuple[float, float] | None:
        """Of a mean over corruptions as if it were one pass over the images: their versions are not independent."""
        if self.robust_accuracy is None:
            return None
        return wilson_interval(self.robust_accuracy * self.num_points, self.num_points)

    @property
    def robustbench_mean_corruption_error(self) -> float | None:
        """mCE relative to RobustBench's own AlexNet; None but for ImageNet's corruptions."""
        outcomes = [CorruptionOutcome.model_validate(each) for each in self.corruptions]
        return robustbench_mean_corruption_error(self.model.dataset, outcomes) if outcomes else None

    @property
    def is_unreliable(self) -> bool:
        return bool(self.flags)


class AttackResult(Base):
    """One attack of an evaluation; it saw the points that all before it left standing."""

    __tablename__ = "attack_results"

    evaluation_id: Mapped[int] = mapped_column(ForeignKey("evaluations.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    attack: Mapped[str] = mapped_column(String(50))
    points: Mapped[int]
    broken: Mapped[int]
    seconds: Mapped[float]
    discarded: Mapped[int] = mapped_column(default=0)
    """Misclassified images that it returned from outside the threat model; not counted."""
    loss: Mapped[str | None] = mapped_column(String(20))
    targets: Mapped[int | None]

    evaluation: Mapped[Evaluation] = relationship(back_populates="attacks")

    __table_args__ = (CheckConstraint("0 <= broken AND broken <= points", name="broken_within_points"),)

    @property
    def survivors(self) -> int:
        return self.points - self.broken


class Entry(Base):
    """A model on one board, in the words and numbers of RobustBench. Shares, not percent; null is not known."""

    __tablename__ = "entries"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    dataset: Mapped[str] = mapped_column(String(50))
    board: Mapped[str] = mapped_column(String(50))
    slug: Mapped[str] = mapped_column(String(150))
    """RobustBench's model id: the file's name in an export."""
    provenance: Mapped[Provenance] = mapped_column(enum(Provenance, 20))
    model_id: Mapped[int | None] = mapped_column(ForeignKey("models.id"))
    """The weights, where they are here."""
    evaluation_id: Mapped[int | None] = mapped_column(ForeignKey("evaluations.id"))
    """The evaluation it stands with, where it was measured here."""
    source: Mapped[str | None] = mapped_column(Text)
    """The text of the file it was imported from, to the letter."""
    anomalies: Mapped[list[Any]] = mapped_column(Json, default=list)
    """`app.boards.robustbench.Anomaly` for each thing in that file that is not as it should be."""

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
    """As stated for this entry; a board's entries may differ."""
    num_points: Mapped[int]
    """Test images behind the accuracies."""
    num_parameters: Mapped[int | None] = mapped_column(BigInteger)
    """Of the network; null where this service does not know the network."""

    clean_accuracy: Mapped[float | None] = mapped_column()
    autoattack_accuracy: Mapped[float | None]
    external_accuracy: Mapped[float | None]
    """What is left after attacks other than AutoAttack, where there were some."""
    reported_accuracy: Mapped[float | None]
    """What the authors say."""
    robust_accuracy: Mapped[float | None] = mapped_column()
    """Best known, by which it ranks: external, else AutoAttack's; on corruptions their mean."""
    mean_corruption_error: Mapped[float | None]
    """As for its evaluation; null for what was imported."""
    robustbench_mean_corruption_error: Mapped[float | None]
    """mCE as RobustBench has it, from its file where it was imported: relative to its own AlexNet."""
    corruptions_3d_accuracy: Mapped[float | None]
    """On corruptions in 3D (arXiv 2203.01441), as the imported file has it; RobustBench's `corruptions_acc_3d`."""
    corruptions_3d_error: Mapped[float | None]
    """Its mean error, relative to that of AlexNet; RobustBench's `corruptions_mce_3d`."""
    withdrawn_at: Mapped[datetime | None]
    """Shown, but without a rank and not exported."""
    withdrawn_reason: Mapped[str | None] = mapped_column(Text)
    unrankable_reason: Mapped[str | None] = mapped_column(Text)
    """Why its figure cannot be believed, and what its owner can do; such an entry has no rank."""
    rank_note: Mapped[str | None] = mapped_column(Text)
    """Why an admin has restored its rank all the same."""
    tier: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """0: it may have a rank; 1: its figure cannot be believed; 2: withdrawn. Follows from those, see `_keep_tier`."""
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
        # All that ranks, charts and the front page read, so that long boards are not read from their wide rows.
        Index(
            "ix_entries_best",
            *("dataset", "board", "tier", robust_accuracy.desc(), clean_accuracy.desc(), "id"),
            *("is_provisional", "year", "provenance"),
        ),
        Index("ix_entries_revision", "dataset", "board", "id", "changed_at"),
    )

    @property
    def is_withdrawn(self) -> bool:
        return self.withdrawn_at is not None

    @property
    def is_barred(self) -> bool:
        """Whether it has no rank because its figure cannot be believed."""
        return self.unrankable_reason is not None and self.rank_note is None

    def interval_of(self, accuracy: float) -> tuple[float, float]:
        """95 % Wilson interval of one of its accuracies."""
        return wilson_interval(accuracy * self.num_points, self.num_points)


@event.listens_for(Entry, "before_insert")
@event.listens_for(Entry, "before_update")
def _keep_tier(_mapper: object, _connection: object, entry: Entry) -> None:
    """An order by the texts themselves could not be read from an index: they may be longer than one can hold."""
    entry.tier = 2 if entry.is_withdrawn else 1 if entry.is_barred else 0
