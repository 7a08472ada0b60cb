"""The life of a job. The only place where a job's state changes.

    queued -> running -> succeeded | failed | cancelled
                 └-> cancelling -> cancelled
    running -> queued again, when its worker hands it back or is lost

A claim raises `attempt`, which fences: every later write of that worker carries it, and a write with an
older one, from a worker that lost the job meanwhile, is refused with `StaleAttempt`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, cast

from pydantic import BaseModel
from sqlalchemy import CursorResult, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, selectinload

from app import job_files
from app.database import Database, database_now
from app.errors import Conflict, NotFound, StaleAttempt
from app.outbox import enqueue
from app.tables import Evaluation, IdempotencyKey, Job, JobEvent, JobKind, JobState
from gkl.errors import FailureCode
from gkl.outcome import Progress
from gkl.spec import JOB_SPEC, EvaluateSpec, TrainSpec

_HELD = (JobState.RUNNING, JobState.CANCELLING)


@dataclass(frozen=True)
class Claim:
    """A worker's right to run a job, until its lease ends."""

    job_id: int
    attempt: int
    spec_json: dict[str, Any]

    @cached_property
    def spec(self) -> TrainSpec | EvaluateSpec:
        """Read only after the claim is committed: a spec of another version must fail its job, not the claim.

        Raises:
            ValidationError: this version cannot run it.
        """
        return JOB_SPEC.validate_python(self.spec_json)


# --- made by the API ---------------------------------------------------------------------------------------------


def create(session: Session, spec: TrainSpec | EvaluateSpec, *, parent_id: int | None = None) -> Job:
    """Queue a job, together with the wake-up for it.

    Raises:
        Unprocessable: the spec names weights that are not here, or that are of another network.
    """
    if isinstance(spec, EvaluateSpec):
        job_files.check_weights(session, spec)
    job = Job(
        kind=JobKind(spec.kind),
        name=spec.name,
        spec=spec.model_dump(mode="json"),
        parent_id=parent_id,
        created_at=database_now(session),
    )
    session.add(job)
    session.flush()
    _add_event(session, job.id, "state", {"state": JobState.QUEUED})
    enqueue(session, job)
    return job


def submit(database: Database, spec: TrainSpec | EvaluateSpec, *, key: str | None, remember: timedelta) -> Job:
    """Queue a job, once per idempotency key.

    Raises:
        Conflict: the key came with another spec before.
        Unprocessable: see `create`.
    """
    try:
        with database.writing() as session:
            return _create_once(session, spec, key, remember)
    except IntegrityError:
        # The same key at the same moment in another transaction, which has committed first.
        with database.writing() as session:
            return _create_once(session, spec, key, remember)


def _create_once(session: Session, spec: TrainSpec | EvaluateSpec, key: str | None, remember: timedelta) -> Job:
    if key is None:
        return create(session, spec)
    canonical = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    body_sha256 = hashlib.sha256(canonical.encode()).hexdigest()
    now = database_now(session)
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < now - remember))
    known = session.get(IdempotencyKey, key)
    if known is not None:
        if known.body_sha256 != body_sha256:
            raise Conflict(
                f"the Idempotency-Key {key!r} was used for another job, {known.job_id}; send a new key for a new job"
            )
        return get(session, known.job_id)
    job = create(session, spec)
    session.add(IdempotencyKey(key=key, body_sha256=body_sha256, job_id=job.id, created_at=now))
    session.flush()
    return job


def get(session: Session, job_id: int) -> Job:
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job


def request_cancel(session: Session, job_id: int) -> Job:
    """Cancel a queued job at once; ask the worker of a running one to stop. Twice is as good as once.

    Raises:
        NotFound: there is no such job.
        Conflict: the job has already ended otherwise.
    """
    job = get(session, job_id)
    if job.state in (JobState.CANCELLING, JobState.CANCELLED):
        return job
    if job.state.is_final:
        raise Conflict(f"job {job_id} has already {job.state}; only a queued or running job can be cancelled")
    if _move(session, job, JobState.QUEUED, JobState.CANCELLED, finished_at=database_now(session)):
        return job
    if _move(session, job, JobState.RUNNING, JobState.CANCELLING):
        return job
    # It moved on between the look and the change.
    session.refresh(job)
    return request_cancel(session, job_id)


# --- made by a worker --------------------------------------------------------------------------------------------


def claim(session: Session, *, worker: str, lease: timedelta) -> Claim | None:
    """Take the queued job that is due: highest priority, then oldest. None if there is none."""
    candidate = (
        select(Job.id)
        .where(Job.state == JobState.QUEUED)
        .order_by(Job.priority.desc(), Job.id)
        .limit(1)
        # Another worker's candidate is passed over instead of waited for. SQLite has one writer anyway.
        .with_for_update(skip_locked=True)
    )
    job_id = session.scalar(candidate)
    if job_id is None:
        return None
    now = database_now(session)
    job = get(session, job_id)
    _move(
        session,
        job,
        JobState.QUEUED,
        JobState.RUNNING,
        attempt=Job.attempt + 1,
        worker=worker,
        lease_expires_at=now + lease,
        started_at=job.started_at or now,
        progress=None,
    )
    return Claim(job.id, job.attempt, job.spec)


def heartbeat(session: Session, claim: Claim, *, lease: timedelta, progress: Progress | None = None) -> JobState:
    """Renew the lease and note the progress; returns the state, in which a wish to cancel is seen."""
    values: dict[str, Any] = {"lease_expires_at": database_now(session) + lease}
    if progress is not None:
        values["progress"] = progress.model_dump(mode="json")
    _write_held(session, claim, values)
    return get(session, claim.job_id).state


def record(session: Session, claim: Claim, event: BaseModel) -> None:
    """Keep an event of the run for ever."""
    # Taking the job's row first puts its events in order: their ids rise in the order of their commits.
    hold(session, claim)
    data = event.model_dump(mode="json")
    _add_event(session, claim.job_id, data.pop("type"), data)


def hold(session: Session, claim: Claim) -> None:
    """Keep the job's row to this transaction, for a write about the job in another table.

    Raises:
        StaleAttempt: the claim no longer holds the job.
    """
    _write_held(session, claim, {})


def succeed(session: Session, claim: Claim) -> Job:
    """End a job well. Its result belongs into the same transaction, after this call."""
    return _finish(session, claim, JobState.SUCCEEDED)


def fail(session: Session, claim: Claim, code: FailureCode, message: str) -> Job:
    return _finish(session, claim, JobState.FAILED, failure_code=code, failure_message=message)


def cancelled(session: Session, claim: Claim) -> Job:
    """End a job that was asked to stop and did."""
    return _finish(session, claim, JobState.CANCELLED)


def hand_back(session: Session, claim: Claim) -> Job:
    """Queue a job again whose worker is going away; it goes on elsewhere from its last checkpoint."""
    hold(session, claim)
    job = get(session, claim.job_id)
    if job.state is JobState.CANCELLING:
        return cancelled(session, claim)
    _requeue(session, job, reason=f"{job.worker} is stopping and handed it back")
    return job


# --- made by the relay -------------------------------------------------------------------------------------------


def reap(session: Session, *, max_lost_leases: int) -> list[Job]:
    """Take jobs from workers that were not heard of for a lease; returns those jobs."""
    now = database_now(session)
    expired = session.scalars(
        select(Job)
        .where(Job.state.in_(_HELD), Job.lease_expires_at < now)
        .order_by(Job.id)
        .with_for_update(skip_locked=True)
    ).all()
    for job in expired:
        job.lost_leases += 1
        session.flush()
        if job.state is JobState.CANCELLING:
            _move(session, job, job.state, JobState.CANCELLED, finished_at=now)
        elif job.lost_leases < max_lost_leases:
            _requeue(session, job, reason=f"{job.worker} was not heard of for a lease")
        else:
            _move(
                session,
                job,
                JobState.RUNNING,
                JobState.FAILED,
                finished_at=now,
                failure_code=FailureCode.WORKER_LOST,
                failure_message=f"its worker was lost {job.lost_leases} times, last {job.worker}; look at that "
                "host's memory and worker log, then submit the job again",
            )
    return list(expired)


# --- the one way to change a state -------------------------------------------------------------------------------


def _move(
    session: Session, job: Job, old: JobState, new: JobState, *, reason: str | None = None, **values: Any
) -> bool:
    """Compare-and-set on (state, attempt), with the event that tells of it; False if another was faster."""
    changed = _execute(
        session,
        update(Job).where(Job.id == job.id, Job.state == old, Job.attempt == job.attempt).values(state=new, **values),
    )
    if changed:
        session.refresh(job)
        if new in (JobState.FAILED, JobState.CANCELLED):
            # An upper bound stands on a board only while its evaluation can end.
            session.execute(delete(Evaluation).where(Evaluation.job_id == job.id, Evaluation.is_provisional))
        data: dict[str, Any] = {"state": new}
        if reason is not None:
            data["reason"] = reason
        if new is JobState.RUNNING:
            data |= {"attempt": job.attempt, "worker": job.worker}
        if new is JobState.FAILED:
            data |= {"code": job.failure_code, "message": job.failure_message}
        _add_event(session, job.id, "state", data)
    return changed


def _finish(session: Session, claim: Claim, state: JobState, **values: Any) -> Job:
    _write_held(session, claim, {"lease_expires_at": None})
    job = get(session, claim.job_id)
    moved = _move(session, job, job.state, state, finished_at=database_now(session), **values)
    assert moved, "the row is locked by the write above"
    return job


def _requeue(session: Session, job: Job, *, reason: str) -> None:
    _move(session, job, JobState.RUNNING, JobState.QUEUED, reason=reason, worker=None, lease_expires_at=None)
    enqueue(session, job)


def _write_held(session: Session, claim: Claim, values: dict[str, Any]) -> None:
    """Change, and so lock, a row that this claim still holds.

    Raises:
        StaleAttempt: it does not.
    """
    held = _execute(
        session,
        update(Job)
        .where(Job.id == claim.job_id, Job.attempt == claim.attempt, Job.state.in_(_HELD))
        .values(attempt=claim.attempt, **values),
    )
    if not held:
        raise StaleAttempt(f"job {claim.job_id} is no longer held by attempt {claim.attempt}")
    session.expire_all()


def _execute(session: Session, statement: Any) -> bool:
    return cast("CursorResult[Any]", session.execute(statement)).rowcount == 1


def _add_event(session: Session, job_id: int, kind: str, data: dict[str, Any]) -> None:
    session.add(JobEvent(job_id=job_id, type=kind, data=data, created_at=database_now(session)))
    session.flush()


def events_after(session: Session, job_id: int, event_id: int, *, limit: int = 1000) -> list[JobEvent]:
    """Events of a job with a larger id, in order."""
    return list(
        session.scalars(
            select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > event_id).order_by(JobEvent.id).limit(limit)
        )
    )


def page(
    session: Session,
    *,
    state: JobState | None = None,
    kind: JobKind | None = None,
    before_id: int | None = None,
    limit: int = 50,
) -> list[Job]:
    """Jobs, newest first, older than `before_id`."""
    query = select(Job).options(selectinload(Job.children)).order_by(Job.id.desc()).limit(limit)
    if state is not None:
        query = query.where(Job.state == state)
    if kind is not None:
        query = query.where(Job.kind == kind)
    if before_id is not None:
        query = query.where(Job.id < before_id)
    return list(session.scalars(query))


def seconds_running(job: Job, now: datetime) -> float | None:
    """How long the job has been, or was, on workers since it was first claimed."""
    return None if job.started_at is None else ((job.finished_at or now) - job.started_at).total_seconds()
