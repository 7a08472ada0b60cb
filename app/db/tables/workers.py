"""Workers, their load, and the time that each submitter's jobs took."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base, Json


class WorkerRow(Base):
    """A worker that has sent a heartbeat."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    host: Mapped[str] = mapped_column(String(200))
    device: Mapped[str] = mapped_column(String(200))
    """Its GPU or processor."""
    version: Mapped[str] = mapped_column(String(50))
    is_draining: Mapped[bool]
    """It was told to stop and takes no more jobs."""
    problem: Mapped[str | None] = mapped_column(String(500))
    """Why it takes no job at the moment, in words."""
    datasets: Mapped[list[Any] | None] = mapped_column(Json)
    """The data sets whose files it has, by name; null until it reports them. Earlier versions never do."""
    published: Mapped[list[Any] | None] = mapped_column(Json)
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
    """Share of the GPU's time, or of the processor's; null if the driver does not report it."""
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    """Memory in use, of the GPU or of the host."""


class WorkerTime(Base):
    """How long a submitter's jobs were on workers on a day in UTC."""

    __tablename__ = "worker_time"

    submitter: Mapped[str] = mapped_column(String(100), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    seconds: Mapped[float]
