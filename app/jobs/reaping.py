"""Returning jobs of lost workers to the queue."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import Session

from app.db.database import DATABASE_AWAY, Database, database_now
from app.db.tables import Job
from app.jobs import job_files
from app.jobs.ending import fail_locked
from app.jobs.state import get, lock, move, requeue
from gkl.answers import HELD, JobKind, JobState
from gkl.errors import FailureCode

_log = logging.getLogger(__name__)


def reap(database: Database, *, max_lost_leases: int, backoff: timedelta) -> list[Job]:
    """Take jobs from workers whose lease has expired, each in a transaction of its own. Returns those jobs.

    After the first loss a job waits for `backoff`, after each further one twice as long as before.
    """
    with database.reading() as session:
        expired = session.scalars(select(Job.id).where(_is_expired(database_now(session))).order_by(Job.id)).all()
    reaped: list[Job] = []
    for job_id in expired:
        try:
            with database.writing() as session:
                job = _take_away(session, job_id, max_lost_leases, backoff)
        except DATABASE_AWAY as error:
            # When the database is back, live workers renew their leases first.
            _log.warning("job %d could not be taken from its lost worker (%s)", job_id, error.orig)
            return reaped
        except Exception:  # noqa: BLE001 - logged; one job that cannot be taken must not block the others
            _log.exception("job %d could not be taken from its lost worker; trying again later", job_id)
            continue
        if job is not None:
            reaped.append(job)
    return reaped


def _is_expired(now: datetime) -> ColumnElement[bool]:
    return and_(Job.state.in_(HELD), Job.lease_expires_at < now)


def _take_away(session: Session, job_id: int, max_lost_leases: int, backoff: timedelta) -> Job | None:
    job = get(session, job_id)
    if job.kind is JobKind.SHARD:
        assert job.parent is not None
        lock(session, job.parent)
    now = database_now(session)
    # If the row is locked, its worker is alive, or the next round finds it.
    is_ours = select(Job.id).where(Job.id == job_id, _is_expired(now)).with_for_update(skip_locked=True)
    if session.scalar(is_ours) is None:
        return None
    session.refresh(job)
    # A job that has saved something since it was claimed makes progress, and must not fail for lost leases.
    if job.claimed_at is not None and job_files.saved_since(session, job_id, job.claimed_at):
        job.lost_leases = 0
    job.lost_leases += 1
    session.flush()
    lost = f"{job.worker} sent no heartbeat for a whole lease"
    if job.state is JobState.CANCELLING:
        move(session, job, JobState.CANCELLED, reason=lost)
    elif job.lost_leases < max_lost_leases:
        requeue(session, job, reason=lost, due_at=now + backoff * 2 ** (job.lost_leases - 1))
    else:
        fail_locked(
            session,
            job,
            FailureCode.WORKER_LOST,
            f"its worker was lost {job.lost_leases} times, last {job.worker}, and nothing was saved in between; look "
            "at that host's memory and worker log, then retry the job: it resumes from what it saved",
        )
    return job
