"""Jobs, their submitters, events, logs, messages and files."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.tables.base import Base, Id, enum
from gkl.answers import JobKind, JobState
from gkl.errors import FailureCode

ANONYMOUS = "anonymous"
"""The submitter of jobs that do not name one."""

UNFINISHED = (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING)


class Job(Base):
    """A job. `attempt` is a fencing token: a write with an older attempt is refused."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    kind: Mapped[JobKind] = mapped_column(enum(JobKind, 20))
    name: Mapped[str] = mapped_column(String(100))
    spec: Mapped[dict[str, Any]]
    state: Mapped[JobState] = mapped_column(enum(JobState, 20), default=JobState.QUEUED)
    submitter: Mapped[str] = mapped_column(String(100), default=ANONYMOUS, server_default=ANONYMOUS)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    """For an evaluation, the train job whose weights it attacks; for a shard, its evaluation."""
    awaits_id: Mapped[int | None] = mapped_column(Id, index=True)
    """For a distillation, the number of the job that trains its teacher, if that had not ended when it was sent. Not
    a foreign key: the job may be removed once its network is known."""
    weights_sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    """The weights in its spec, which may be its teacher's, as a column with an index."""
    shard_index: Mapped[int | None]
    """The shard's index in its evaluation, from 0."""

    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    """When it was first claimed."""
    finished_at: Mapped[datetime | None]
    due_at: Mapped[datetime | None]
    """When a queued job may be claimed: later after a lost worker; null while it waits for shards or a teacher."""
    claimed_at: Mapped[datetime | None]
    """When its running attempt began; null if none is running."""
    run_seconds: Mapped[float] = mapped_column(default=0.0, server_default="0")
    """Seconds on workers in ended attempts, since it was sent or last retried."""

    attempt: Mapped[int] = mapped_column(Integer, default=0)
    """How many times a worker has claimed it."""
    lost_leases: Mapped[int] = mapped_column(Integer, default=0)
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None]

    progress: Mapped[dict[str, Any] | None]
    """The newest `gkl.outcome.Progress`."""
    resources: Mapped[dict[str, Any] | None]
    """The newest `gkl.outcome.Resources`."""
    failure_code: Mapped[FailureCode | None] = mapped_column(enum(FailureCode, 30))
    failure_message: Mapped[str | None]

    parent: Mapped[Job | None] = relationship(remote_side="Job.id", back_populates="children")
    children: Mapped[list[Job]] = relationship(back_populates="parent", order_by="Job.id")

    __table_args__ = (
        # For claims: each submitter's queued jobs in the order in which they are claimed.
        Index("ix_jobs_claim", "state", "submitter", priority.desc(), "id"),
        Index("ix_jobs_state_id", "state", "id"),
        Index("ix_jobs_kind_id", "kind", "id"),
        # For counting jobs on every scrape of the metrics.
        Index("ix_jobs_kind_state", "kind", "state"),
    )

    @property
    def shards(self) -> list[Job]:
        """The evaluation's shards in order; empty for most jobs."""
        return [child for child in self.children if child.kind is JobKind.SHARD]

    @property
    def followers(self) -> list[Job]:
        """Jobs that use its result, such as the evaluation after a training."""
        return [child for child in self.children if child.kind is not JobKind.SHARD]


class Submitter(Base):
    """A submitter of jobs; workers are shared fairly between submitters."""

    __tablename__ = "submitters"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    last_claimed_at: Mapped[datetime | None]
    """When a worker last claimed one of their jobs."""


class JobEvent(Base):
    """What happened to a job: state changes, epochs, attacks. Its id is the stream's event id."""

    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(20))
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]

    __table_args__ = (Index("ix_job_events_job_id_id", "job_id", "id"),)


class JobLogPart(Base):
    """A part of the log of a job's runs, which is their standard error."""

    __tablename__ = "job_logs"

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    """Offset of its first byte in the whole log."""
    data: Mapped[bytes] = mapped_column(LargeBinary)


class OutboxMessage(Base):
    """A wake-up message, written in the transaction that queued the job."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    due_at: Mapped[datetime]
    """It is not published earlier."""
    published_at: Mapped[datetime | None] = mapped_column(index=True)


class IdempotencyKey(Base):
    """A key that a client sent with a request, and the job that the request created."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]


class FileKind(StrEnum):
    RESUME = "resume"
    """A training's whole state, to resume from; numbered by epoch."""
    WEIGHTS = "weights"
    """The network that a training produced; numbered by epoch."""
    BLOCK = "block"
    """A finished part of an evaluation, to resume from; numbered by part."""
    CERTIFICATE = "certificate"
    """The certificate of an evaluation, or the one sent as a report."""
    EXAMPLES = "examples"
    """Adversarial examples that were sent, until they are checked."""
    CONVERTED = "converted"
    """A state dict from torch.save, converted to safetensors; its file is named by the original's sha256."""


TO_GO_ON_FROM = (FileKind.RESUME, FileKind.BLOCK)
"""What the next attempt at a job goes on from."""
NEEDED_BY_A_RETRY = (*TO_GO_ON_FROM, FileKind.EXAMPLES)
"""What a job that ended badly keeps, so that it can be retried."""


class JobFile(Base):
    """A file in the artifact store that a job left."""

    __tablename__ = "job_files"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    kind: Mapped[FileKind] = mapped_column(enum(FileKind, 20))
    number: Mapped[int]
    file: Mapped[str] = mapped_column(String(200))
    """Its name in the run's directory."""
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]

    job: Mapped[Job] = relationship()

    __table_args__ = (UniqueConstraint("job_id", "kind", "number"),)
