"""The states of a job. The only module that changes a job's state.

    queued -> running -> succeeded | failed | cancelled
                 └-> cancelling -> cancelled
    running -> queued again, when its worker hands it back or is lost
    failed | cancelled -> queued again, when a user retries it

A claim raises `attempt`, which is a fencing token: every later write of that worker carries it, and a write with an
older one, from a worker that lost the job meanwhile, raises `StaleAttempt`.

A distillation whose teacher is still being trained is a queued job that is not due. The transaction in which the
teacher succeeds makes it due; if the teacher's job fails or is cancelled, it fails too.

An evaluation in shards is a queued job that is not due while its shards run. The transaction in which the last shard
succeeds makes it due; its run then only merges their parts. To change an evaluation and its shards, lock the
evaluation's row first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, cast

from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from app.accounts import quotas
from app.boards.placing import withdraw_bound
from app.core.errors import NotFound, StaleAttempt
from app.db.database import database_now
from app.db.tables import Job, JobEvent
from app.jobs.outbox import enqueue
from gkl.answers import HELD, JobState
from gkl.errors import FailureCode
from gkl.spec import RUN_SPEC, AnySpec


@dataclass(frozen=True)
class Claim:
    """A worker's right to run a job, until its lease ends."""

    job_id: int
    attempt: int
    spec_json: dict[str, Any]
    shard_index: int | None
    run_seconds: float
    """Seconds that earlier attempts took."""

    @cached_property
    def spec(self) -> AnySpec:
        """The validated spec. Read it only after the claim is committed: a spec of another version must fail its job,
        not the claim.

        Raises:
            ValidationError: this version cannot run it.
        """
        return RUN_SPEC.validate_python(self.spec_json)


def get(session: Session, job_id: int) -> Job:
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job


def get_locked(session: Session, job_id: int) -> Job:
    """Get a job and lock its row for this transaction."""
    job = get(session, job_id)
    lock(session, job)
    return job


def cancel_locked(session: Session, job: Job, reason: str) -> None:
    """Cancel a locked job in any state: a queued one at once, a running one through its worker."""
    if job.state is JobState.QUEUED:
        move(session, job, JobState.CANCELLED, reason=reason)
    elif job.state is JobState.RUNNING:
        move(session, job, JobState.CANCELLING, reason=f"{reason}; its worker is asked to stop")


def move(session: Session, job: Job, new: JobState, *, reason: str | None = None, **values: Any) -> None:
    """Change the state by compare-and-set on (state, attempt), and add the event. The caller has locked the row.

    Raises:
        StaleAttempt: another transaction changed it first, which the lock rules out on both databases.
    """
    old, now = job.state, database_now(session)
    if old in HELD and new not in HELD:
        # A lost worker's time counts only until its lease ended.
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
        # An upper bound stays on a board only while its evaluation can still end.
        withdraw_bound(session, job.id)
        _fail_students(session, job)
    data: dict[str, Any] = {"state": new}
    if reason is not None:
        data["reason"] = reason
    if new is JobState.RUNNING:
        data |= {"attempt": job.attempt, "worker": job.worker}
    if new is JobState.FAILED:
        data |= {"code": job.failure_code, "message": job.failure_message}
    add_event(session, job.id, "state", data)


def _fail_students(session: Session, teacher: Job) -> None:
    """Fail the jobs that wait for the network of a training that will leave none."""
    waiting = select(Job).where(Job.awaits_id == teacher.id, Job.state == JobState.QUEUED, Job.due_at.is_(None))
    ended = "failed" if teacher.state is JobState.FAILED else "been cancelled"
    for student in session.scalars(waiting.with_for_update().execution_options(populate_existing=True)).all():
        move(
            session,
            student,
            JobState.FAILED,
            failure_code=FailureCode.INVALID_INPUT,
            failure_message=f"its teacher, job {teacher.id}, has {ended}; retry that job, then this one, or choose "
            "another teacher",
        )


def requeue(session: Session, job: Job, *, reason: str, due_at: datetime) -> None:
    move(session, job, JobState.QUEUED, reason=reason, worker=None, due_at=due_at)
    enqueue(session, job)


def lock(session: Session, job: Job) -> None:
    """Lock the row for this transaction, and read its current values."""
    session.refresh(job, with_for_update=True)


def write_held(session: Session, claim: Claim, values: dict[str, Any]) -> None:
    """Update, and so lock, the job's row if this claim still holds the job.

    Raises:
        StaleAttempt: the claim no longer holds it.
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
