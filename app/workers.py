"""The workers that have been heard of, and what they do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

import gkl
from app.database import database_now
from app.tables import Job, JobState, WorkerRow

State = Literal["idle", "busy", "draining", "stuck", "lost"]


@dataclass(frozen=True)
class WorkerStatus:
    row: WorkerRow
    job: Job | None
    """What it runs."""
    is_lost: bool
    """It was not heard of for a lease."""

    @property
    def state(self) -> State:
        if self.is_lost:
            return "lost"
        if self.row.is_draining:
            return "draining"
        if self.job is not None:
            return "busy"
        return "idle" if self.row.problem is None else "stuck"


def beat(
    session: Session,
    name: str,
    *,
    host: str,
    device: str,
    is_draining: bool = False,
    problem: str | None = None,
    is_new: bool = False,
) -> None:
    """Note that a worker lives. `is_new`: its process has just begun, whoever had this name before."""
    now = database_now(session)
    row = session.get(WorkerRow, name)
    if row is None:
        row = WorkerRow(name=name, host=host, started_at=now)
        session.add(row)
    elif is_new:
        row.started_at = now
    row.device, row.version, row.is_draining, row.problem = device, gkl.__version__, is_draining, problem
    row.heard_at = now


def leave(session: Session, name: str) -> None:
    """Forget a worker that has stopped in order."""
    session.execute(delete(WorkerRow).where(WorkerRow.name == name))


def forget_lost(session: Session, *, after: timedelta) -> None:
    session.execute(delete(WorkerRow).where(WorkerRow.heard_at < database_now(session) - after))


def count_on(session: Session, host: str, *, lease: timedelta) -> int:
    """How many living workers share a host."""
    living = WorkerRow.heard_at >= database_now(session) - lease
    return session.scalar(select(func.count()).select_from(WorkerRow).where(WorkerRow.host == host, living)) or 0


def all_of_them(session: Session, *, lease: timedelta) -> list[WorkerStatus]:
    """By host, then by name."""
    lost_before = database_now(session) - lease
    held = session.scalars(select(Job).where(Job.state.in_((JobState.RUNNING, JobState.CANCELLING)))).all()
    jobs = {job.worker: job for job in held}
    rows = session.scalars(select(WorkerRow).order_by(WorkerRow.host, WorkerRow.started_at, WorkerRow.name))
    return [WorkerStatus(row, jobs.get(row.name), row.heard_at < lost_before) for row in rows]
