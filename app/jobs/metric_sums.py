"""Counters of what happened to jobs, stored as sums: a scrape reads only the events since they were last updated.

A counter must never fall, but retrying a job changes its row, and old events are removed. So call
`count_new_events` before removing events of type 'state'.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import and_, delete, exists, func, select
from sqlalchemy.orm import Session, aliased

from app.db.database import Database, database_now, insert_into
from app.db.tables import Job, JobEvent, MetricRun, MetricSum
from gkl.answers import JobKind, JobState

_log = logging.getLogger(__name__)

LAG = timedelta(minutes=1)
"""Newer events are not counted yet: an event gets its id before it is committed, and one that commits after a higher id
must not be missed. No transaction takes this long."""

_EVENTS_AT_ONCE = 5000
_TYPES = ("state", "epoch", "attack")

# Names of sums. The row `_POSITION` holds the id of the last counted event as count, and its time as seconds.
_POSITION, _ENDS, _RUNS, _STAGES = "position", "ends", "runs", "stages"


@dataclass(frozen=True)
class Sums:
    """Sums over all time, until about a minute ago."""

    ends: Counter[tuple[str, str]]
    """By kind and by state or failure code."""
    run_seconds: defaultdict[str, float]
    """By kind; includes running jobs."""
    stages: dict[str, tuple[int, float]]
    """By name: the number of finished stages, and their seconds."""


def count_new_events(database: Database) -> None:
    """Add all events that are not counted yet to the stored sums."""
    has_more = True
    while has_more:
        with database.writing() as session:
            has_more = _add_events(session)[0]


def updated_sums(database: Database, *, patience_seconds: float) -> Sums:
    """The sums, after adding new events for at most about `patience_seconds`."""
    until = time.monotonic() + patience_seconds
    while True:
        with database.writing() as session:
            has_more, counted_until = _add_events(session)
            if not has_more or time.monotonic() > until:
                return _read(session, counted_until)


@dataclass
class _Found:
    """What some events add to the sums, and which jobs run after them."""

    running: dict[int, tuple[str, datetime]]
    """By job: its kind, and when its run began."""
    sums: defaultdict[tuple[str, str, str], list[float]] = field(default_factory=lambda: defaultdict(lambda: [0, 0.0]))

    def add(self, name: str, label: str, code: str = "", *, seconds: float = 0.0) -> None:
        found = self.sums[name, label[:100], code]
        found[0] += 1
        found[1] += seconds

    def take(self, job_id: int, kind: JobKind, event_type: str, data: dict[str, Any], at: datetime) -> None:
        try:
            self._take(job_id, kind, event_type, data, at)
        except (KeyError, ValueError, TypeError) as error:
            # An event that this version cannot read must not stop the counting of later ones.
            _log.warning("an event of job %d is not counted (%s: %s)", job_id, type(error).__name__, error)

    def _take(self, job_id: int, kind: JobKind, event_type: str, data: dict[str, Any], at: datetime) -> None:
        if event_type == "epoch":
            self.add(_STAGES, "training", seconds=data["seconds"])
        elif event_type == "attack":
            self.add(_STAGES, data["outcome"]["attack"], seconds=data["outcome"]["seconds"])
        else:
            self._move(job_id, kind, data, at)

    def _move(self, job_id: int, kind: JobKind, data: dict[str, Any], at: datetime) -> None:
        state = JobState(data["state"])
        if state is JobState.RUNNING:
            self.running[job_id] = (kind, at)
        elif state is not JobState.CANCELLING and job_id in self.running:
            self.add(_RUNS, kind, seconds=(at - self.running.pop(job_id)[1]).total_seconds())
        if state.is_final:
            self.add(_ENDS, kind, data.get("code", state))


def _add_events(session: Session) -> tuple[bool, datetime]:
    """Count a batch of events. Returns whether there are more, and until when events are counted."""
    position = _locked_position(session)
    until = database_now(session) - LAG
    old = select(JobEvent.id).where(JobEvent.id > position.count, JobEvent.created_at <= until)
    end = session.scalar(old.order_by(JobEvent.id.desc()).limit(1))
    has_more = False
    if end is not None:
        events = session.execute(_events(position.count, end)).all()
        has_more = len(events) == _EVENTS_AT_ONCE
        if has_more:
            # A job whose end is not counted yet must not count as running until now.
            end, until = events[-1].id, events[-1].created_at
        _add_to_sums(session, (tuple(event)[1:] for event in events))
        position.count = end
    position.seconds = max(position.seconds, until.timestamp())
    session.flush()
    return has_more, until


def _locked_position(session: Session) -> MetricSum:
    row = {"name": _POSITION, "label": "", "code": "", "count": 0, "seconds": 0.0}
    session.execute(insert_into(session, MetricSum).values(row).on_conflict_do_nothing())
    mine = select(MetricSum).where(MetricSum.name == _POSITION).with_for_update()
    position = session.scalars(mine.execution_options(populate_existing=True)).one()
    newest = session.scalar(select(func.max(JobEvent.id))) or 0
    if newest < position.count:
        # SQLite reuses ids once the newest events are removed: then the time says what is counted.
        counted_until = datetime.fromtimestamp(position.seconds, UTC)
        known = select(func.max(JobEvent.id)).where(JobEvent.created_at <= counted_until)
        position.count = session.scalar(known) or 0
    return position


def _events(after_id: int, end: int) -> Any:
    return (
        select(JobEvent.id, JobEvent.job_id, Job.kind, JobEvent.type, JobEvent.data, JobEvent.created_at)
        .join(Job, Job.id == JobEvent.job_id)
        .where(JobEvent.id > after_id, JobEvent.id <= end, JobEvent.type.in_(_TYPES), ~_is_repeated())
        .order_by(JobEvent.id)
        .limit(_EVENTS_AT_ONCE)
    )


def _is_repeated() -> Any:
    """An evaluation that resumes sends the events of its finished attacks again."""
    earlier = aliased(JobEvent)
    path = ("outcome", "attack")
    return exists().where(
        and_(
            JobEvent.type == "attack",
            earlier.type == "attack",
            earlier.job_id == JobEvent.job_id,
            earlier.id < JobEvent.id,
            earlier.data[path].as_string() == JobEvent.data[path].as_string(),
        )
    )


def _add_to_sums(session: Session, events: Iterable[Any]) -> None:
    before = {row.job_id: (row.kind, row.since) for row in session.scalars(select(MetricRun))}
    found = _Found(dict(before))
    for event in events:
        found.take(*event)
    ended = [job_id for job_id in before if before[job_id] != found.running.get(job_id)]
    if ended:
        session.execute(delete(MetricRun).where(MetricRun.job_id.in_(ended)))
    begun = [job_id for job_id in found.running if before.get(job_id) != found.running[job_id]]
    for job_id in begun:
        kind, since = found.running[job_id]
        session.execute(insert_into(session, MetricRun).values(job_id=job_id, kind=kind, since=since))
    for (name, label, code), (count, seconds) in found.sums.items():
        row = {"name": name, "label": label, "code": code, "count": int(count), "seconds": seconds}
        added = insert_into(session, MetricSum).values(row)
        sums = {
            "count": MetricSum.count + added.excluded.count,
            "seconds": MetricSum.seconds + added.excluded.seconds,
        }
        session.execute(added.on_conflict_do_update(index_elements=["name", "label", "code"], set_=sums))


def _read(session: Session, until: datetime) -> Sums:
    sums = Sums(Counter(), defaultdict(float), {})
    rows = select(MetricSum.name, MetricSum.label, MetricSum.code, MetricSum.count, MetricSum.seconds)
    for name, label, code, count, seconds in session.execute(rows.order_by(MetricSum.label)):
        if name == _ENDS:
            sums.ends[label, code] = count
        elif name == _RUNS:
            sums.run_seconds[label] += seconds
        elif name == _STAGES:
            sums.stages[label] = count, seconds
    # Add running jobs, until the same moment: a job that just ended must be counted exactly once.
    for kind, since in session.execute(select(MetricRun.kind, MetricRun.since)):
        sums.run_seconds[kind] += max(0.0, (until - since).total_seconds())
    return sums
