"""Counters of the metrics."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base, enum
from gkl.answers import JobKind


class MetricSum(Base):
    """A counter of the metrics, up to the last counted event."""

    __tablename__ = "metric_sums"

    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    """What it counts, see `app.jobs.metric_sums`."""
    label: Mapped[str] = mapped_column(String(100), primary_key=True)
    code: Mapped[str] = mapped_column(String(50), primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]


class MetricRun(Base):
    """A job that runs, as of the last counted event. This row may outlive the job's own row."""

    __tablename__ = "metric_runs"

    job_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    kind: Mapped[JobKind] = mapped_column(enum(JobKind, 20))
    since: Mapped[datetime]
