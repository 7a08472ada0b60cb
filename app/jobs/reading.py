"""Reading jobs: a page of them, their events, their progress."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from app.db.database import database_now
from app.db.tables import Job, JobEvent
from gkl.answers import JobKind, JobState
from gkl.outcome import Progress


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


def count_due(session: Session) -> int:
    """The number of jobs that wait only for a worker."""
    return (
        session.scalar(select(func.count()).where(Job.state == JobState.QUEUED, Job.due_at <= database_now(session)))
        or 0
    )


def progress(job: Job) -> dict[str, Any] | None:
    """A job's progress, as a `gkl.outcome.Progress`; for an evaluation that waits for its shards, their progress."""
    if job.state is not JobState.QUEUED or not job.shards or job.due_at is not None:
        return job.progress
    done = [shard.state is JobState.SUCCEEDED for shard in job.shards]
    parts = [
        1.0 if is_done else (shard.progress or {}).get("fraction", 0.0)
        for shard, is_done in zip(job.shards, done, strict=True)
    ]
    return Progress(
        stage="shards", fraction=sum(parts) / len(parts), detail=f"{sum(done)} of {len(done)} are done"
    ).model_dump(mode="json")


def seconds_on_workers(job: Job, now: datetime) -> float | None:
    """How long the job has been on workers since it was sent or last retried; None if it never was."""
    if job.started_at is None:
        return None
    return job.run_seconds + ((now - job.claimed_at).total_seconds() if job.claimed_at is not None else 0.0)
