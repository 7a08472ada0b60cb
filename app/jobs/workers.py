"""Workers that have sent heartbeats, and what they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

import gkl
from app.db.cursors import Key, cursor_of, rows_after, values_of
from app.db.database import database_now
from app.db.tables import Job, WorkerLoad, WorkerRow
from gkl.answers import JobState, LoadView

LOADS_FOR = timedelta(days=1)
"""How long the load of workers is kept."""
_LOAD_EVERY = timedelta(minutes=5)
State = Literal["idle", "busy", "draining", "stuck", "lost"]


@dataclass(frozen=True)
class WorkerStatus:
    row: WorkerRow
    job: Job | None
    """The job that it runs."""
    is_lost: bool
    """It sent no heartbeat for a whole lease."""

    @property
    def state(self) -> State:
        if self.is_lost:
            return "lost"
        if self.row.is_draining:
            return "draining"
        if self.job is not None:
            return "busy"
        return "idle" if self.row.problem is None else "stuck"


@dataclass(frozen=True)
class Seen:
    """What a worker has found on its host; None if it has not looked yet."""

    datasets: list[str] | None = None
    published: list[str] | None = None
    load: LoadView | None = None


_NOTHING = Seen()


def record_heartbeat(
    session: Session,
    name: str,
    *,
    host: str,
    device: str,
    is_draining: bool = False,
    problem: str | None = None,
    is_new: bool = False,
    seen: Seen = _NOTHING,
) -> None:
    """Record a worker's heartbeat.

    Args:
        session: a transaction.
        name: the worker's name.
        host: the host's name.
        device: its GPU or processor.
        is_draining: whether it takes no more jobs.
        problem: why it takes no job at the moment.
        is_new: whether its process has just started; an earlier one may have had this name.
        seen: its files and its load.
    """
    now = database_now(session)
    row = session.get(WorkerRow, name)
    if row is None:
        row = WorkerRow(name=name, host=host, started_at=now)
        session.add(row)
    elif is_new:
        row.started_at = now
    row.device, row.version, row.is_draining, row.problem = device, gkl.__version__, is_draining, problem
    row.datasets, row.published = seen.datasets, seen.published
    row.load = None if seen.load is None else seen.load.model_dump(mode="json")
    row.heard_at = now
    if seen.load is not None:
        _note_load(session, name, seen.load, now)


def _note_load(session: Session, name: str, load: LoadView, now: datetime) -> None:
    """Store the load every five minutes and keep it for a day: few rows for each worker."""
    newest = session.scalar(select(func.max(WorkerLoad.taken_at)).where(WorkerLoad.worker == name))
    if newest is not None and now - newest < _LOAD_EVERY:
        return
    old = (WorkerLoad.worker == name, WorkerLoad.taken_at < now - LOADS_FOR)
    session.execute(delete(WorkerLoad).where(*old))
    session.add(WorkerLoad(worker=name, taken_at=now, busy=load.busy, memory_bytes=load.memory_bytes))


def loads(session: Session) -> dict[str, list[WorkerLoad]]:
    """The loads of the last day by worker, oldest first."""
    found: dict[str, list[WorkerLoad]] = {}
    since = database_now(session) - LOADS_FOR
    newer = select(WorkerLoad).where(WorkerLoad.taken_at >= since).order_by(WorkerLoad.taken_at)
    for each in session.scalars(newer):
        found.setdefault(each.worker, []).append(each)
    return found


def remove(session: Session, name: str) -> None:
    """Remove a worker that has stopped by itself."""
    session.execute(delete(WorkerRow).where(WorkerRow.name == name))


def forget_lost(session: Session, *, after: timedelta) -> None:
    session.execute(delete(WorkerLoad).where(WorkerLoad.taken_at < database_now(session) - LOADS_FOR))
    session.execute(delete(WorkerRow).where(WorkerRow.heard_at < database_now(session) - after))


def count_on(session: Session, host: str, *, lease: timedelta) -> int:
    """How many live workers share a host."""
    living = WorkerRow.heard_at >= database_now(session) - lease
    return session.scalar(select(func.count()).select_from(WorkerRow).where(WorkerRow.host == host, living)) or 0


# By host, then in the order in which they started.
_ORDER = (
    Key(WorkerRow.host, is_optional=False),
    Key(WorkerRow.started_at, is_optional=False),
    Key(WorkerRow.name, is_optional=False),
)


def all_of_them(session: Session, *, lease: timedelta) -> list[WorkerStatus]:
    """All workers, by host, then by age."""
    return _statuses(session, session.scalars(_listed()).all(), lease)


def page(
    session: Session, *, lease: timedelta, limit: int, cursor: str | None = None
) -> tuple[list[WorkerStatus], str | None]:
    """A page of workers, and the cursor of the next page; None on the last page.

    Raises:
        Unprocessable: the cursor is not one of this list.
    """
    query = _listed().limit(limit + 1)
    if cursor is not None:
        query = query.where(rows_after(_ORDER, values_of(cursor, "workers", _ORDER)))
    rows = session.scalars(query).all()
    following = None
    if len(rows) > limit:
        last = rows[limit - 1]
        following = cursor_of("workers", (last.host, last.started_at, last.name))
    return _statuses(session, rows[:limit], lease), following


def _listed() -> Select[WorkerRow]:
    return select(WorkerRow).order_by(*(key.order for key in _ORDER))


def _statuses(session: Session, rows: Sequence[WorkerRow], lease: timedelta) -> list[WorkerStatus]:
    lost_before = database_now(session) - lease
    held = select(Job).where(Job.state.in_((JobState.RUNNING, JobState.CANCELLING)))
    jobs = {job.worker: job for job in session.scalars(held)}
    return [WorkerStatus(row, jobs.get(row.name), row.heard_at < lost_before) for row in rows]


@dataclass(frozen=True)
class Waiting:
    """How many jobs of a submitter wait for a worker, and how many run; each shard of an evaluation counts as one."""

    submitter: str
    waiting: int
    running: int


def queue(session: Session) -> list[Waiting]:
    """The queue by submitter: those with most running jobs first, then those with most waiting."""
    is_waiting = (Job.state == JobState.QUEUED) & Job.due_at.is_not(None)
    is_running = Job.state.in_((JobState.RUNNING, JobState.CANCELLING))
    waiting, running = (func.count().filter(each) for each in (is_waiting, is_running))
    found = session.execute(
        select(Job.submitter, waiting, running).where(is_waiting | is_running).group_by(Job.submitter)
    )
    return sorted((Waiting(*row) for row in found), key=lambda each: (-each.running, -each.waiting, each.submitter))
