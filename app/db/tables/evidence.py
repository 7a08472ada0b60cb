"""External attacks, reports, transfers, and the points of certificates."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.tables.base import Base, Id, SqlNullJson
from app.db.tables.boards import Entry
from app.db.tables.jobs import Job


class ExternalAttack(Base):
    """Adversarial examples sent against an entry."""

    __tablename__ = "external_attacks"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    entry_id: Mapped[int] = mapped_column(ForeignKey("entries.id", ondelete="CASCADE"), index=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), unique=True)
    """Unique: a job that is finished twice counts once."""
    name: Mapped[str] = mapped_column(String(100))
    submitter: Mapped[str] = mapped_column(String(100))
    examples: Mapped[int | None]
    """How many were confirmed; null until they are checked, and if the check failed."""
    broken: Mapped[int | None]
    """How many points they broke that had withstood all attacks before."""
    robust_correct: Mapped[int | None]
    """Points that withstand also this attack."""
    certificate_sha256: Mapped[str | None] = mapped_column(String(64))
    """The certificate with these examples merged; null if no new point was broken."""
    created_at: Mapped[datetime]

    entry: Mapped[Entry] = relationship(back_populates="external_attacks")
    job: Mapped[Job] = relationship()


class Report(Base):
    """The certificate of an entry whose network only its submitter has."""

    __tablename__ = "reports"

    entry_id: Mapped[int] = mapped_column(ForeignKey("entries.id", ondelete="CASCADE"), primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), unique=True)
    """The newest job that checked a certificate of this network."""
    submitter: Mapped[str] = mapped_column(String(100))
    dataset: Mapped[str] = mapped_column(String(50))
    board: Mapped[str] = mapped_column(String(50))
    """The entry's board."""
    weights_sha256: Mapped[str] = mapped_column(String(64))
    """The hash of the network's weights, as the certificate states it."""
    certificate_sha256: Mapped[str] = mapped_column(String(64), index=True)
    outcome: Mapped[dict[str, Any]]
    """`gkl.outcome.ReportOutcome`."""
    created_at: Mapped[datetime]

    entry: Mapped[Entry] = relationship(back_populates="report")
    job: Mapped[Job] = relationship()

    __table_args__ = (UniqueConstraint("submitter", "weights_sha256", "dataset", "board"),)


class RobustPoints(Base):
    """Which test images a certificate's network gets right under every attack: see `app.boards.robust_points`."""

    __tablename__ = "robust_points"

    certificate_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    num_points: Mapped[int]
    bits: Mapped[bytes] = mapped_column(LargeBinary)
    """One bit a test image in their order, the first in the highest bit of the first byte; 1: no attack broke it."""

    __table_args__ = (CheckConstraint("num_points > 0", name="robust_points_has_points"),)


class Transfer(Base):
    """Adversarial examples of one entry, tried on the network of another."""

    __tablename__ = "transfers"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    source_id: Mapped[int] = mapped_column(ForeignKey("entries.id", ondelete="CASCADE"), index=True)
    """The entry whose examples they are."""
    target_id: Mapped[int] = mapped_column(ForeignKey("entries.id", ondelete="CASCADE"), index=True)
    """The entry on whose network they are tried."""
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), unique=True)
    submitter: Mapped[str] = mapped_column(String(100))
    source_certificate_sha256: Mapped[str] = mapped_column(String(64))
    """The source's certificate at the time of the request; the target's network never changes."""
    outcome: Mapped[dict[str, Any] | None] = mapped_column(SqlNullJson)
    """`gkl.outcome.TransferOutcome`; null until it is measured."""
    created_at: Mapped[datetime]

    source: Mapped[Entry] = relationship(foreign_keys=source_id)
    target: Mapped[Entry] = relationship(foreign_keys=target_id)
    job: Mapped[Job] = relationship()

    __table_args__ = (CheckConstraint("source_id <> target_id", name="two_entries"),)
