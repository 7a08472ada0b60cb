"""Cancelling and retrying jobs, as users request it."""

from __future__ import annotations

from datetime import datetime

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.accounts import audit, quotas
from app.accounts.principals import Principal
from app.core.errors import Conflict, Unprocessable
from app.db.database import database_now
from app.db.tables import FileKind, Job
from app.jobs import job_files, teachers
from app.jobs.outbox import enqueue
from app.jobs.state import cancel_locked, get, lock, move
from gkl.answers import JobKind, JobState
from gkl.spec import (
    PUBLISHED_WEIGHTS,
    RUN_SPEC,
    DistillSpec,
    EvaluateSpec,
    ExternalSpec,
    ReportSpec,
    TransferSpec,
    named_weights,
)

_RETRIABLE = (JobState.FAILED, JobState.CANCELLED)


def cancel_own(session: Session, sender: Principal, job_id: int) -> Job:
    """Cancel a job on behalf of a user, and write the audit record.

    Raises:
        Forbidden: the job is another user's, and the sender is not an admin.
        NotFound, Conflict: see `request_cancel`.
    """
    sender.check_owns(get(session, job_id).submitter, f"job {job_id}")
    audit.record(session, sender.actor, "job.cancel", f"job {job_id}")
    return request_cancel(session, job_id)


def retry_own(session: Session, sender: Principal, job_id: int) -> Job:
    """Retry a job on behalf of a user, and write the audit record.

    Raises:
        Forbidden: the job is another user's, and the sender is not an admin.
        TooMany: its submitter has reached a quota.
        NotFound, Conflict, Unprocessable: see `retry`.
    """
    submitter = get(session, job_id).submitter
    sender.check_owns(submitter, f"job {job_id}")
    quotas.check_room_for_job(session, submitter)
    audit.record(session, sender.actor, "job.retry", f"job {job_id}")
    return retry(session, job_id)


def request_cancel(session: Session, job_id: int) -> Job:
    """Cancel a queued job at once; ask the worker of a running one to stop. A second call changes nothing.

    Cancelling a shard cancels its whole evaluation. Cancelling a training that has succeeded cancels the evaluation
    that follows it, if that has not ended.

    Raises:
        NotFound: there is no such job.
        Conflict: the job has succeeded or failed, and no job that follows it can be cancelled.
    """
    job = get(session, job_id)
    if job.kind is JobKind.SHARD:
        assert job.parent_id is not None
        request_cancel(session, job.parent_id)
        return job
    lock(session, job)
    if job.state.is_final:
        unfinished = [follower for follower in job.followers if not follower.state.is_final]
        for follower in unfinished:
            request_cancel(session, follower.id)
        if not unfinished and job.state is not JobState.CANCELLED:
            raise Conflict(f"job {job_id} has already {job.state}; only a queued or running job can be cancelled")
        return job
    cancel_locked(session, job, "cancelled by request")
    for shard in job.shards:
        lock(session, shard)
        cancel_locked(session, shard, f"job {job.id} was cancelled")
    return job


def retry(session: Session, job_id: int) -> Job:
    """Queue a failed or cancelled job again; it resumes from what its last attempt saved.

    Retrying a shard retries its whole evaluation; shards that succeeded keep their results.

    Raises:
        NotFound: there is no such job.
        Conflict: the job has not ended, or has succeeded, or one of its shards is still stopping.
        Unprocessable: its weights are no longer stored, or its teacher has failed.
    """
    job = get(session, job_id)
    if job.kind is JobKind.SHARD:
        assert job.parent_id is not None
        retry(session, job.parent_id)
        return job
    lock(session, job)
    if job.state not in _RETRIABLE:
        raise Conflict(f"job {job_id} is {job.state}; only a failed or cancelled job can be retried")
    try:
        spec = RUN_SPEC.validate_python(job.spec)
    except ValidationError as error:
        raise Unprocessable(f"this version cannot run the spec of job {job_id}; send a new job") from error
    teacher: Job | None = None
    if isinstance(spec, DistillSpec):
        spec, teacher = teachers.looked_up(session, spec)
        job.spec, job.awaits_id = spec.model_dump(mode="json"), None if teacher is None else teacher.id
    if isinstance(spec, EvaluateSpec | DistillSpec) and (named := named_weights(spec)) is not None:
        job_files.check_weights(session, named, within=job_files.field_of_weights(spec))
        job.weights_sha256 = None if named.weights == PUBLISHED_WEIGHTS else named.weights
    session.flush()
    if isinstance(spec, ExternalSpec | TransferSpec):
        job_files.check_sent_file(session, job_id, FileKind.EXAMPLES)
    if isinstance(spec, ReportSpec):
        job_files.check_sent_file(session, job_id, FileKind.CERTIFICATE)
    undone = []
    for shard in job.shards:
        lock(session, shard)
        if shard.state is JobState.SUCCEEDED and job_files.has_parts(session, shard.id):
            continue
        if not shard.state.is_final:
            raise Conflict(
                f"job {shard.id}, a shard of job {job_id}, is still {shard.state}; retry when it has stopped"
            )
        undone.append(shard)
    if teacher is not None:
        _queue_again(session, job, reason=f"retried, waits for its teacher, job {teacher.id}", due_at=None)
        return job
    reason = "retried" if not undone else f"retried, waits for {len(undone)} of its {len(job.shards)} shards"
    _queue_again(session, job, reason=reason, due_at=None if undone else database_now(session))
    for shard in undone:
        _queue_again(session, shard, reason="retried", due_at=database_now(session))
    return job


def _queue_again(session: Session, job: Job, *, reason: str, due_at: datetime | None) -> None:
    move(
        session,
        job,
        JobState.QUEUED,
        reason=reason,
        due_at=due_at,
        finished_at=None,
        failure_code=None,
        failure_message=None,
        progress=None,
        worker=None,
        lost_leases=0,
        # A retried job may use the full time limit again.
        run_seconds=0.0,
    )
    if due_at is not None:
        enqueue(session, job)
