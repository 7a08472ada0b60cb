"""How a worker gets a job and keeps it: the claim, the heartbeat, the events of its run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from app.accounts import quotas, tokens
from app.db.database import database_now
from app.db.tables import Job, Submitter
from app.jobs.outbox import withdraw
from app.jobs.state import Claim, add_event, get, move, write_held
from gkl.answers import HELD, JobState
from gkl.outcome import Progress, Resources


def claim(session: Session, *, worker: str, lease: timedelta) -> Claim | None:
    """Claim the next due job; None if no job is due.

    The highest priority comes first; among equals the submitter with the fewest jobs on workers, then the submitter
    whose last job was claimed longest ago; of that submitter's jobs the oldest.
    """
    now = database_now(session)
    in_turn = _submitters_in_turn(session, now)
    limits = tokens.limits_of(session, in_turn)
    for submitter in in_turn:
        if submitter in limits and not quotas.may_run_another(session, submitter, limits[submitter], now):
            continue
        # Skip a job that another worker is claiming instead of waiting for it. SQLite has one writer anyway.
        job = session.scalars(_next_of(submitter, now).with_for_update(skip_locked=True)).first()
        if job is None:
            continue
        _note_turn(session, submitter, now)
        move(
            session,
            job,
            JobState.RUNNING,
            attempt=Job.attempt + 1,
            worker=worker,
            lease_expires_at=now + lease,
            claimed_at=now,
            started_at=job.started_at or now,
            progress=None,
        )
        withdraw(session, job)
        return Claim(job.id, job.attempt, job.spec, job.shard_index, job.run_seconds)
    return None


def _note_turn(session: Session, submitter: str, now: datetime) -> None:
    # Skipped while another claim for this submitter locks the row: a worker frozen there must not block the others.
    row = select(Submitter).where(Submitter.name == submitter).with_for_update(skip_locked=True)
    found = session.scalars(row).first()
    if found is not None:
        found.last_claimed_at = now


def _submitters_in_turn(session: Session, now: datetime) -> list[str]:
    """Submitters with a due job, in the order in which they are served. One index lookup for each submitter, however
    long the queue."""
    first = _next_of(Submitter.name, now).with_only_columns(Job.id).correlate(Submitter).scalar_subquery()
    waiting = [row for row in session.execute(select(Submitter.name, Submitter.last_claimed_at, first)) if row[2]]
    # Sorted in Python: with a join, the planner would read all jobs instead of looking up these few.
    priority = dict(session.execute(select(Job.id, Job.priority).where(Job.id.in_([row[2] for row in waiting]))).all())
    held = dict(
        session.execute(select(Job.submitter, func.count()).where(Job.state.in_(HELD)).group_by(Job.submitter)).all()
    )
    never = datetime.min.replace(tzinfo=UTC)
    waiting.sort(key=lambda row: (-priority[row[2]], held.get(row[0], 0), row[1] or never, row[2]))
    return [name for name, _, _ in waiting]


def _next_of(submitter: Any, now: datetime) -> Select[Job]:
    return (
        select(Job)
        .where(Job.state == JobState.QUEUED, Job.submitter == submitter, Job.due_at <= now)
        .order_by(Job.priority.desc(), Job.id)
        .limit(1)
    )


def heartbeat(
    session: Session,
    claim: Claim,
    *,
    lease: timedelta,
    progress: Progress | None = None,
    resources: Resources | None = None,
) -> JobState:
    """Renew the lease and store the run's progress. Returns the job's state: `cancelling` asks the run to stop."""
    values: dict[str, Any] = {"lease_expires_at": database_now(session) + lease}
    if progress is not None:
        values["progress"] = progress.model_dump(mode="json")
    if resources is not None:
        values["resources"] = resources.model_dump(mode="json")
    write_held(session, claim, values)
    return get(session, claim.job_id).state


def record_event(session: Session, claim: Claim, event: BaseModel) -> None:
    """Store an event of the run."""
    # Locking the job's row first keeps its events in order: their ids rise in the order of their commits.
    lock_claimed(session, claim)
    data = event.model_dump(mode="json")
    add_event(session, claim.job_id, data.pop("type"), data)


def lock_claimed(session: Session, claim: Claim) -> Job:
    """Lock the job's row for this transaction, before a write about the job in another table.

    Raises:
        StaleAttempt: the claim no longer holds the job.
    """
    write_held(session, claim, {})
    return get(session, claim.job_id)
