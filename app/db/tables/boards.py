"""The database's tables. `app.jobs` is the only place where a job's state changes."""

from __future__ import annotations

from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    event,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from gkl.answers import JobKind, JobState, Provenance, Scope
from gkl.corruption_error import robustbench_mean_corruption_error
from gkl.errors import FailureCode
from gkl.outcome import CorruptionOutcome, broken_beyond_autoattack, wilson_interval

ANONYMOUS = "anonymous"
"""The submitter of jobs that name none."""

UNFINISHED = (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC, also from SQLite, which stores none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    @property
    def python_type(self) -> type[datetime]:
        return datetime

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# SQLite numbers rows by itself only in a column of exactly the type INTEGER.
_Id = BigInteger().with_variant(Integer, "sqlite")
_Json = JSON().with_variant(JSONB, "postgresql")
_SqlNullJson = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def _enum(kind: type[StrEnum], length: int) -> Enum:
    """Stored as its value in a plain string column, so that a new member needs no migration of a type."""
    return Enum(kind, native_enum=False, length=length, values_callable=lambda members: [m.value for m in members])


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: _Json}  # noqa: RUF012 - SQLAlchemy's hook


class Job(Base):
    """One thing to run. `attempt` fences: a write that carries an older one is refused."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    kind: Mapped[JobKind] = mapped_column(_enum(JobKind, 20))
    name: Mapped[str] = mapped_column(String(100))
    spec: Mapped[dict[str, Any]]
    state: Mapped[JobState] = mapped_column(_enum(JobState, 20), default=JobState.QUEUED)
    submitter: Mapped[str] = mapped_column(String(100), default=ANONYMOUS, server_default=ANONYMOUS)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    """The train job whose weights this evaluation attacks; the evaluation of which this is a shard."""
    weights_sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    """Of the file that it measures, as its spec has it: to be looked for."""
    shard_index: Mapped[int | None]
    """Which shard of its parent it is, counted from 0."""

    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    """When it was first claimed."""
    finished_at: Mapped[datetime | None]
    due_at: Mapped[datetime | None]
    """From when on a queued job may be claimed: later after a lost worker; null while it waits for its shards."""
    claimed_at: Mapped[datetime | None]
    """When the attempt began that holds it; null while none does."""
    run_seconds: Mapped[float] = mapped_column(default=0.0, server_default="0")
    """Time on workers in the attempts that are over, since it was sent or last retried."""

    attempt: Mapped[int] = mapped_column(Integer, default=0)
    """How many times a worker has claimed it."""
    lost_leases: Mapped[int] = mapped_column(Integer, default=0)
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None]

    progress: Mapped[dict[str, Any] | None]
    """The newest `gkl.outcome.Progress`."""
    resources: Mapped[dict[str, Any] | None]
    """The newest `gkl.outcome.Resources`."""
    failure_code: Mapped[FailureCode | None] = mapped_column(_enum(FailureCode, 30))
    failure_message: Mapped[str | None]

    parent: Mapped[Job | None] = relationship(remote_side="Job.id", back_populates="children")
    children: Mapped[list[Job]] = relationship(back_populates="parent", order_by="Job.id")

    __table_args__ = (
        # What a claim looks for of each submitter, in the order in which it takes.
        Index("ix_jobs_claim", "state", "submitter", priority.desc(), "id"),
        Index("ix_jobs_state_id", "state", "id"),
        Index("ix_jobs_kind_id", "kind", "id"),
        # Counted for every scrape of the metrics.
        Index("ix_jobs_kind_state", "kind", "state"),
    )

    @property
    def shards(self) -> list[Job]:
        """The jobs that share its work, in their order; none for most jobs."""
        return [child for child in self.children if child.kind is JobKind.SHARD]

    @property
    def followers(self) -> list[Job]:
        """The jobs that take up its result."""
        return [child for child in self.children if child.kind is not JobKind.SHARD]


class Submitter(Base):
    """Whoever sends jobs, between whom workers are shared fairly."""

    __tablename__ = "submitters"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    last_claimed_at: Mapped[datetime | None]
    """When a worker last took up a job of theirs."""


class WorkerRow(Base):
    """A worker that has been heard of."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    host: Mapped[str] = mapped_column(String(200))
    device: Mapped[str] = mapped_column(String(200))
    """Its GPU or processor."""
    version: Mapped[str] = mapped_column(String(50))
    is_draining: Mapped[bool]
    """Told to stop: takes no job any more."""
    problem: Mapped[str | None] = mapped_column(String(500))
    """Why it takes no job at the moment, in words."""
    datasets: Mapped[list[Any] | None] = mapped_column(_Json)
    """The data sets whose files it has, by name; null until it has told, as one of an earlier version never does."""
    published: Mapped[list[Any] | None] = mapped_column(_Json)
    """The architectures whose published weights it has on its disk."""
    load: Mapped[dict[str, Any] | None]
    """`gkl.answers.LoadView`: how busy its device was at its last heartbeat."""
    started_at: Mapped[datetime]
    heard_at: Mapped[datetime] = mapped_column(index=True)


class WorkerLoad(Base):
    """How busy a worker's device was, every few minutes of the last day."""

    __tablename__ = "worker_loads"

    worker: Mapped[str] = mapped_column(String(200), primary_key=True)
    taken_at: Mapped[datetime] = mapped_column(primary_key=True, index=True)
    busy: Mapped[float | None]
    """Share of the GPU's time, or of the processor's; null where the driver does not tell."""
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    """In use, of the GPU or of the host."""


class JobEvent(Base):
    """What happened to a job: state changes, epochs, attacks. Its id is the stream's event id."""

    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(20))
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]

    __table_args__ = (Index("ix_job_events_job_id_id", "job_id", "id"),)


class MetricSum(Base):
    """A counter of the metrics, with all that happened until the event that is counted last."""

    __tablename__ = "metric_sums"

    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    """What it is of, see `app.metric_sums`."""
    label: Mapped[str] = mapped_column(String(100), primary_key=True)
    code: Mapped[str] = mapped_column(String(50), primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]


class MetricRun(Base):
    """A job that a worker has, as of the event that is counted last. It may outlive the job's own row."""

    __tablename__ = "metric_runs"

    job_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    kind: Mapped[JobKind] = mapped_column(_enum(JobKind, 20))
    since: Mapped[datetime]


class JobLogPart(Base):
    """A piece of what the runs of a job wrote to their standard error."""

    __tablename__ = "job_logs"

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """Offset of its first byte in the whole log."""
    data: Mapped[bytes] = mapped_column(LargeBinary)


class OutboxMessage(Base):
    """A wake-up that workers are owed, written in the transaction that queued the job."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    due_at: Mapped[datetime]
    """Not published before."""
    published_at: Mapped[datetime | None] = mapped_column(index=True)


class IdempotencyKey(Base):
    """A key that a client sent with a request, and the job which that request made."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]


class Token(Base):
    """A secret that lets somebody in, by its hash, and what they may use."""

    __tablename__ = "tokens"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), index=True)
    """Whose it is: the submitter of what is sent with it."""
    hint: Mapped[str] = mapped_column(String(20))
    """The secret's first characters, to tell tokens apart."""
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    """Of the secret, which is random: a slow hash would add nothing."""
    scope: Mapped[Scope] = mapped_column(_enum(Scope, 20))
    max_queued_jobs: Mapped[int | None]
    """Of this and the following limits null is none."""
    max_running_jobs: Mapped[int | None]
    gpu_hours_per_day: Mapped[float | None]
    """Hours on workers in a day of UTC."""
    max_upload_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of all files that are kept for them."""
    requests_per_minute: Mapped[int | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """To the minute."""


class LoginSession(Base):
    """A browser that somebody logged in with a token."""

    __tablename__ = "login_sessions"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Of the cookie's value."""
    token_id: Mapped[int] = mapped_column(ForeignKey("tokens.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]

    token: Mapped[Token] = relationship()


class AuditRecord(Base):
    """Something that somebody changed. Written in the transaction that changed it."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    created_at: Mapped[datetime] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(String(100))
    token_id: Mapped[int | None] = mapped_column(ForeignKey("tokens.id", ondelete="SET NULL"))
    action: Mapped[str] = mapped_column(String(50))
    subject: Mapped[str] = mapped_column(String(200))
    detail: Mapped[dict[str, Any]] = mapped_column(_Json, default=dict)


class WorkerTime(Base):
    """How long somebody's jobs were on workers in a day of UTC."""

    __tablename__ = "worker_time"

    submitter: Mapped[str] = mapped_column(String(100), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    seconds: Mapped[float]


class FileKind(StrEnum):
    RESUME = "resume"
    """A training's whole state, to go on from; numbered by epoch."""
    WEIGHTS = "weights"
    """The network that a training made; numbered by epoch."""
    BLOCK = "block"
    """A finished part of an evaluation, to go on from; numbered by part."""
    CERTIFICATE = "certificate"
    """The proof of an evaluation; of a report, what was sent."""
    EXAMPLES = "examples"
    """Adversarial examples that somebody sent, until they are checked."""
    CONVERTED = "converted"
    """Weights that came as a state dict of torch.save, as safetensors; its file is named by the original's sha256."""


class JobFile(Base):
    """A file in the artifact store that a job left."""

    __tablename__ = "job_files"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    kind: Mapped[FileKind] = mapped_column(_enum(FileKind, 20))
    number: Mapped[int]
    file: Mapped[str] = mapped_column(String(200))
    """Its name in the run's directory."""
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]

    job: Mapped[Job] = relationship()

    __table_args__ = (UniqueConstraint("job_id", "kind", "number"),)


class Upload(Base):
    """Weights that somebody sent."""

    __tablename__ = "uploads"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    format: Mapped[str] = mapped_column(String(20))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    """When they were sent last."""
    contents: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    """Its tensors' names and shapes, see `app.weights_contents`; null for what only a run can read."""


class UploadSender(Base):
    """Somebody who has sent some weights, and is charged for them. They go when nobody who sent them wants them."""

    __tablename__ = "upload_senders"

    sha256: Mapped[str] = mapped_column(ForeignKey("uploads.sha256", ondelete="CASCADE"), primary_key=True)
    submitter: Mapped[str] = mapped_column(String(100), primary_key=True, index=True)


class PartialUpload(Base):
    """A file that is being sent in pieces. How much of it is here its file says."""

    __tablename__ = "partial_uploads"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    submitter: Mapped[str] = mapped_column(String(100), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    """Of the whole file."""
    sha256: Mapped[str | None] = mapped_column(String(64))
    """Of the weights that it became; null until it is whole. It stays a while for whoever missed the answer."""
    created_at: Mapped[datetime]
    touched_at: Mapped[datetime] = mapped_column(index=True)


class Model(Base):
    """One network with its weights: an architecture with a file, or with one of several networks in it."""

    __tablename__ = "models"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
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

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
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
    corruptions: Mapped[list[Any]] = mapped_column(_Json, default=list)
    """`gkl.outcome.CorruptionOutcome` for each corruption in each severity."""
    flags: Mapped[list[Any]] = mapped_column(_Json, default=list)
    """`gkl.outcome.Flag` for each reason not to trust it."""
    checks: Mapped[list[Any]] = mapped_column(_Json, default=list, server_default="[]")
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

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    dataset: Mapped[str] = mapped_column(String(50))
    board: Mapped[str] = mapped_column(String(50))
    slug: Mapped[str] = mapped_column(String(150))
    """RobustBench's model id: the file's name in an export."""
    provenance: Mapped[Provenance] = mapped_column(_enum(Provenance, 20))
    model_id: Mapped[int | None] = mapped_column(ForeignKey("models.id"))
    """The weights, where they are here."""
    evaluation_id: Mapped[int | None] = mapped_column(ForeignKey("evaluations.id"))
    """The evaluation it stands with, where it was measured here."""
    source: Mapped[str | None] = mapped_column(Text)
    """The text of the file it was imported from, to the letter."""
    anomalies: Mapped[list[Any]] = mapped_column(_Json, default=list)
    """`app.robustbench.Anomaly` for each thing in that file that is not as it should be."""

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


class ExternalAttack(Base):
    """Adversarial examples that somebody sent against an entry."""

    __tablename__ = "external_attacks"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    entry_id: Mapped[int] = mapped_column(ForeignKey("entries.id", ondelete="CASCADE"), index=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), unique=True)
    """Unique: a job that is finished twice counts once."""
    name: Mapped[str] = mapped_column(String(100))
    submitter: Mapped[str] = mapped_column(String(100))
    examples: Mapped[int | None]
    """How many held; null until they are checked, and where they did not hold."""
    broken: Mapped[int | None]
    """Of points that stood until then."""
    robust_correct: Mapped[int | None]
    """Points that stand after it."""
    certificate_sha256: Mapped[str | None] = mapped_column(String(64))
    """With these examples merged; null where nothing new was broken."""
    created_at: Mapped[datetime]

    entry: Mapped[Entry] = relationship(back_populates="external_attacks")
    job: Mapped[Job] = relationship()


class Report(Base):
    """The certificate of an entry whose network its submitter alone has."""

    __tablename__ = "reports"

    entry_id: Mapped[int] = mapped_column(ForeignKey("entries.id", ondelete="CASCADE"), primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), unique=True)
    """The job that checked it; an earlier one's certificate is replaced."""
    submitter: Mapped[str] = mapped_column(String(100))
    dataset: Mapped[str] = mapped_column(String(50))
    board: Mapped[str] = mapped_column(String(50))
    """As of its entry."""
    weights_sha256: Mapped[str] = mapped_column(String(64))
    """What it says that the network's weights hash to."""
    certificate_sha256: Mapped[str] = mapped_column(String(64), index=True)
    outcome: Mapped[dict[str, Any]]
    """`gkl.outcome.ReportOutcome`."""
    created_at: Mapped[datetime]

    entry: Mapped[Entry] = relationship(back_populates="report")
    job: Mapped[Job] = relationship()

    __table_args__ = (UniqueConstraint("submitter", "weights_sha256", "dataset", "board"),)


class RobustPoints(Base):
    """Of a certificate, which test images its network gets right under every attack: see `app.robust_points`."""

    __tablename__ = "robust_points"

    certificate_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    num_points: Mapped[int]
    bits: Mapped[bytes] = mapped_column(LargeBinary)
    """One bit a test image in their order, the first in the highest bit of the first byte; 1: no attack broke it."""

    __table_args__ = (CheckConstraint("num_points > 0", name="robust_points_has_points"),)


class Transfer(Base):
    """Adversarial examples of one entry, tried on the network of another."""

    __tablename__ = "transfers"

    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    source_id: Mapped[int] = mapped_column(ForeignKey("entries.id", ondelete="CASCADE"), index=True)
    """The entry whose examples they are."""
    target_id: Mapped[int] = mapped_column(ForeignKey("entries.id", ondelete="CASCADE"), index=True)
    """The entry on whose network they are tried."""
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), unique=True)
    submitter: Mapped[str] = mapped_column(String(100))
    source_certificate_sha256: Mapped[str] = mapped_column(String(64))
    """The source's certificate when it was asked for; the target's network stays the same."""
    outcome: Mapped[dict[str, Any] | None] = mapped_column(_SqlNullJson)
    """`gkl.outcome.TransferOutcome`; null until it is measured."""
    created_at: Mapped[datetime]

    source: Mapped[Entry] = relationship(foreign_keys=source_id)
    target: Mapped[Entry] = relationship(foreign_keys=target_id)
    job: Mapped[Job] = relationship()

    __table_args__ = (CheckConstraint("source_id <> target_id", name="two_entries"),)
