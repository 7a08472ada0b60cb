"""How a run ends its job: succeeded, failed, cancelled, or handed back to the queue."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.database import database_now
from app.db.tables import Job
from app.jobs.claiming import lock_claimed
from app.jobs.outbox import enqueue
from app.jobs.state import Claim, add_event, cancel_locked, get, lock, move, requeue
from gkl.answers import JobKind, JobState
from gkl.errors import FailureCode


def succeed(session: Session, claim: Claim) -> Job:
    """End a job as succeeded. Write its result in the same transaction, after this call."""
    job = hold_with_family(session, claim)
    move(session, job, JobState.SUCCEEDED)
    if job.kind is JobKind.SHARD:
        _go_on_after_shards(session, job)
    return job


def _go_on_after_shards(session: Session, shard: Job) -> None:
    """Make the evaluation due when its last shard has succeeded. Its locked row decides which shard is the last."""
    evaluation = shard.parent
    assert evaluation is not None
    undone = session.scalar(
        select(func.count()).where(
            Job.parent_id == evaluation.id, Job.kind == JobKind.SHARD, Job.state != JobState.SUCCEEDED
        )
    )
    if undone == 0 and evaluation.state is JobState.QUEUED:
        evaluation.due_at = database_now(session)
        session.flush()
        add_event(
            session, evaluation.id, "state", {"state": JobState.QUEUED, "reason": "all its shards are done: merge them"}
        )
        enqueue(session, evaluation)


def fail(session: Session, claim: Claim, code: FailureCode, message: str) -> Job:
    job = hold_with_family(session, claim)
    fail_locked(session, job, code, message)
    return job


def fail_locked(session: Session, job: Job, code: FailureCode, message: str) -> None:
    """End a locked job as failed; if it is a shard, also its evaluation, which can no longer be completed."""
    move(session, job, JobState.FAILED, failure_code=code, failure_message=message)
    evaluation = job.parent
    if job.kind is not JobKind.SHARD or evaluation is None or evaluation.state is not JobState.QUEUED:
        return
    assert job.shard_index is not None
    siblings = evaluation.shards
    move(
        session,
        evaluation,
        JobState.FAILED,
        failure_code=code,
        failure_message=f"shard {job.shard_index + 1} of {len(siblings)}, job {job.id}, failed: {message}",
    )
    for sibling in siblings:
        if sibling.id != job.id:
            lock(session, sibling)
            cancel_locked(session, sibling, f"job {job.id}, another shard, failed")


def end_cancelled(session: Session, claim: Claim) -> Job:
    """End a job that was asked to stop and has stopped."""
    job = hold_with_family(session, claim)
    move(session, job, JobState.CANCELLED, reason=f"{job.worker} has stopped the run")
    return job


def hand_back(session: Session, claim: Claim, *, reason: str | None = None) -> Job:
    """Queue a job again without counting a lost lease; it resumes from what it saved. The default reason is that its
    worker is stopping."""
    job = hold_with_family(session, claim)
    if job.state is JobState.CANCELLING:
        return end_cancelled(session, claim)
    reason = reason or f"{job.worker} is stopping and handed it back"
    requeue(session, job, reason=reason, due_at=database_now(session))
    return job


def hold_with_family(session: Session, claim: Claim) -> Job:
    """Lock a claimed job; for a shard lock its evaluation first. Every caller locks in this order, against deadlock."""
    job = get(session, claim.job_id)
    if job.kind is JobKind.SHARD:
        assert job.parent is not None
        lock(session, job.parent)
    return lock_claimed(session, claim)
