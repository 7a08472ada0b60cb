"""Cleanup: removes rows and files past their retention time, and files that no row names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.orm import Session

from app.accounts import audit, quotas, tokens
from app.boards import robust_points
from app.db.database import database_now
from app.db.tables import IdempotencyKey, Job, JobLogPart, Submitter
from app.http.service import Service
from app.jobs import job_files, retention, workers
from app.store import disk_now
from app.weights import uploads
from gkl.answers import JobState

_log = logging.getLogger(__name__)

_UNSUCCESSFUL = (JobState.FAILED, JobState.CANCELLED)
_FORGOTTEN_AFTER = timedelta(days=1)


def clean(service: Service, *, young_seconds: float | None = None) -> None:
    """Run one round of cleanup. The next round finishes what was interrupted.

    Args:
        service: the service.
        young_seconds: younger files are kept, since the row that names them may not be written yet.
    """
    settings, database = service.settings, service.database
    with database.writing() as session:
        retention.forget_files(session, settings)
        retention.forget_events(session, settings)
        _forget_logs(session, timedelta(days=settings.log_retention_days))
        remembered = database_now(session) - timedelta(hours=settings.idempotency_hours)
        session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < remembered))
        uploads.forget_old(session, timedelta(days=settings.upload_retention_days))
        tokens.forget_old_logins(session)
        audit.forget(session, timedelta(days=settings.audit_retention_days))
        quotas.forget_worker_time(session)
        workers.forget_lost(session, after=_FORGOTTEN_AFTER)
        _forget_submitters(session)
        retention.forget_jobs(session, settings)
        robust_points.forget_unnamed(session)
    if young_seconds is None:
        young_seconds = settings.young_seconds
    pieces = uploads.remove_pieces(service, disk_now(settings.data_dir) - young_seconds)

    def is_named(hashes: list[str]) -> set[str]:
        with database.reading() as session:
            return job_files.named_hashes(session, hashes)

    files = service.store.remove_unnamed(is_named, older_than_seconds=young_seconds)
    if files or pieces:
        _log.info("removed %d files and %d abandoned uploads", files, pieces)


def _forget_logs(session: Session, after: timedelta) -> None:
    ended = select(Job.id).where(_ended((*_UNSUCCESSFUL, JobState.SUCCEEDED), database_now(session) - after))
    session.execute(delete(JobLogPart).where(JobLogPart.job_id.in_(ended)))


def _forget_submitters(session: Session) -> None:
    """Remove submitters without recent or queued jobs, since every claim looks at each submitter."""
    waiting = select(Job.submitter).where(Job.state == JobState.QUEUED)
    long_ago = database_now(session) - _FORGOTTEN_AFTER
    idle = or_(Submitter.last_claimed_at < long_ago, Submitter.last_claimed_at.is_(None))
    session.execute(delete(Submitter).where(idle, Submitter.name.not_in(waiting)))
    # If one of them sends a job at this moment, the relay registers them again in its next round.


def _ended(states: Sequence[JobState], before: object) -> ColumnElement[bool]:
    return and_(Job.state.in_(states), Job.finished_at < before)
