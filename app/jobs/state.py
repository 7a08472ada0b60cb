"""The life of a job. The only place where a job's state changes.

    queued -> running -> succeeded | failed | cancelled
                 └-> cancelling -> cancelled
    running -> queued again, when its worker hands it back or is lost
    failed | cancelled -> queued again, when somebody retries it

A claim raises `attempt`, which fences: every later write of that worker carries it, and a write with an
older one, from a worker that lost the job meanwhile, is refused with `StaleAttempt`.

An evaluation in shards is a job that waits, queued and not due, for the shards' jobs. The transaction in which
the last of them succeeds makes it due; it then finds all its parts done and has only to put them together. Whoever
changes an evaluation and its shards takes the evaluation's row first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, cast

from sqlalchemy import CursorResult, update
from sqlalchemy.orm import Session

from app.accounts import quotas
from app.boards.placing import withdraw_bound
from app.core.errors import NotFound, StaleAttempt
from app.db.database import database_now
from app.db.tables import Job, JobEvent
from app.jobs.outbox import enqueue
from gkl.answers import HELD, JobState
from gkl.spec import RUN_SPEC, AnySpec


@dataclass(frozen=True)
class Claim:
    """A worker's right to run a job, until its lease ends."""

    job_id: int
    attempt: int
    spec_json: dict[str, Any]
    shard_index: int | None
    run_seconds: float
    """Time that earlier attempts took."""

    @cached_property
    def spec(self) -> AnySpec:
        """Read only after the claim is committed: a spec of another version must fail its job, not the claim.

        Raises:
            ValidationError: this version cannot run it.
        """
        return RUN_SPEC.validate_python(self.spec_json)


def get(session: Session, job_id: int) -> Job:
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job


def locked(session: Session, job_id: int) -> Job:
    """A job whose row this transaction keeps to itself."""
    job = get(session, job_id)
    lock(session, job)
    return job


def cancel_locked(session: Session, job: Job, reason: str) -> None:
    """Of a locked job, whatever its state."""
    if job.state is JobState.QUEUED:
        move(session, job, JobState.CANCELLED, reason=reason)
    elif job.state is JobState.RUNNING:
        move(session, job, JobState.CANCELLING, reason=f"{reason}; its worker is asked to stop")


def move(session: Session, job: Job, new: JobState, *, reason: str | None = None, **values: Any) -> None:
    """Compare-and-set on (state, attempt), with the event that tells of it. The row is locked already.

    Raises:
        StaleAttempt: somebody was faster, which the lock rules out on both databases.
    """
    old, now = job.state, database_now(session)
    if old in HELD and new not in HELD:
        # A lost worker's time counts until its lease ended: after that, it held nothing.
        until = min(now, job.lease_expires_at) if job.lease_expires_at is not None else now
        spent = max(0.0, (until - job.claimed_at).total_seconds()) if job.claimed_at is not None else 0.0
        if job.claimed_at is not None:
            quotas.note_worker_time(session, job.submitter, job.claimed_at, until)
        values = {"lease_expires_at": None, "claimed_at": None, "run_seconds": job.run_seconds + spent} | values
    if new.is_final:
        values = {"finished_at": now, "due_at": None} | values
    changed = _execute(
        session,
        update(Job).where(Job.id == job.id, Job.state == old, Job.attempt == job.attempt).values(state=new, **values),
    )
    if not changed:
        raise StaleAttempt(f"job {job.id} is no longer {old} in attempt {job.attempt}")
    session.refresh(job)
    if new in (JobState.FAILED, JobState.CANCELLED):
        # An upper bound stands on a board only while its evaluation can end.
        withdraw_bound(session, job.id)
    data: dict[str, Any] = {"state": new}
    if reason is not None:
        data["reason"] = reason
    if new is JobState.RUNNING:
        data |= {"attempt": job.attempt, "worker": job.worker}
    if new is JobState.FAILED:
        data |= {"code": job.failure_code, "message": job.failure_message}
    add_event(session, job.id, "state", data)


def requeue(session: Session, job: Job, *, reason: str, due_at: datetime) -> None:
    move(session, job, JobState.QUEUED, reason=reason, worker=None, due_at=due_at)
    enqueue(session, job)


def lock(session: Session, job: Job) -> None:
    """Keep the row to this transaction, and read what it is now."""
    session.refresh(job, with_for_update=True)


def write_held(session: Session, claim: Claim, values: dict[str, Any]) -> None:
    """Change, and so lock, a row that this claim still holds.

    Raises:
        StaleAttempt: it does not.
    """
    held = _execute(
        session,
        update(Job)
        .where(Job.id == claim.job_id, Job.attempt == claim.attempt, Job.state.in_(HELD))
        .values(attempt=claim.attempt, **values),
    )
    if not held:
        raise StaleAttempt(f"job {claim.job_id} is no longer held by attempt {claim.attempt}")
    session.expire_all()


def _execute(session: Session, statement: Any) -> bool:
    return cast("CursorResult[Any]", session.execute(statement)).rowcount == 1


def add_event(session: Session, job_id: int, kind: str, data: dict[str, Any]) -> None:
    session.add(JobEvent(job_id=job_id, type=kind, data=data, created_at=database_now(session)))
    session.flush()
