"""What goes by itself: what is past its time, and files that nothing refers to any more."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.orm import Session

from app import audit, quotas, tokens, uploads, workers
from app.database import Database, database_now
from app.service import Service
from app.tables import FileKind, IdempotencyKey, Job, JobEvent, JobFile, JobKind, JobState, Submitter, Upload

_log = logging.getLogger(__name__)

_UNSUCCESSFUL = (JobState.FAILED, JobState.CANCELLED)
_FORGOTTEN_AFTER = timedelta(days=1)
# Longer than a transaction may wait for its turn, however short the lease.
_YOUNG_SECONDS = 120
_RUN_DIRECTORY = re.compile(r"(\d+)-(\d+)")


def clean(service: Service, *, young_seconds: float | None = None) -> None:
    """One round. Whatever is interrupted is done by the next one.

    Args:
        service: whose.
        young_seconds: files and run directories that are younger stay. By default two leases, and two minutes at
            least: whoever made them has by then written its row, or has lost its job.
    """
    settings, database = service.settings, service.database
    with database.writing() as session:
        _forget_checkpoints(session, timedelta(days=settings.checkpoint_retention_days))
        _forget_events(session, timedelta(days=settings.log_retention_days))
        remembered = database_now(session) - timedelta(hours=settings.idempotency_hours)
        session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < remembered))
        uploads.forget_old(session, timedelta(days=settings.upload_retention_days))
        tokens.forget_old_logins(session)
        audit.forget(session, timedelta(days=settings.audit_retention_days))
        quotas.forget_worker_time(session)
        workers.forget_lost(session, after=_FORGOTTEN_AFTER)
        _forget_submitters(session)
    logs = _remove_logs(service, timedelta(days=settings.log_retention_days))
    if young_seconds is None:
        young_seconds = max(_YOUNG_SECONDS, 2 * settings.lease_seconds)
    before = service.store.now() - young_seconds
    pieces = uploads.remove_pieces(service, before)
    directories = _remove_run_directories(database, settings.runs_dir, before)

    def is_named(hashes: list[str]) -> set[str]:
        with database.reading() as session:
            return _named(session, hashes)

    files = service.store.remove_unnamed(is_named, older_than_seconds=young_seconds)
    if files or logs or directories or pieces:
        _log.info(
            "removed %d files, %d logs, %d run directories and %d given-up uploads", files, logs, directories, pieces
        )


def _forget_checkpoints(session: Session, after: timedelta) -> None:
    """Of a whole evaluation that ended badly, also what its good shards left."""
    ended = _ended(_UNSUCCESSFUL, database_now(session) - after)
    unsuccessful = select(Job.id).where(ended)
    shards = select(Job.id).where(Job.kind == JobKind.SHARD, Job.parent_id.in_(unsuccessful))
    session.execute(
        delete(JobFile).where(
            JobFile.kind.in_((FileKind.RESUME, FileKind.BLOCK, FileKind.EXAMPLES)),
            or_(JobFile.job_id.in_(unsuccessful), JobFile.job_id.in_(shards)),
        )
    )


def _forget_events(session: Session, after: timedelta) -> None:
    """The states stay, as the job does; what a success measured belongs to its result."""
    ended = select(Job.id).where(_ended(_UNSUCCESSFUL, database_now(session) - after))
    session.execute(delete(JobEvent).where(JobEvent.type != "state", JobEvent.job_id.in_(ended)))


def _forget_submitters(session: Session) -> None:
    """Those who were not served for long and wait for nothing: each costs every claim a look."""
    waiting = select(Job.submitter).where(Job.state == JobState.QUEUED)
    long_ago = database_now(session) - _FORGOTTEN_AFTER
    idle = or_(Submitter.last_claimed_at < long_ago, Submitter.last_claimed_at.is_(None))
    session.execute(delete(Submitter).where(idle, Submitter.name.not_in(waiting)))
    # One whose new job is being sent in this moment the relay's next announcement knows again.


def _remove_logs(service: Service, after: timedelta) -> int:
    logs = {int(path.stem): path for path in service.store.job_logs()}
    if not logs:
        return 0
    with service.database.reading() as session:
        everything = (*_UNSUCCESSFUL, JobState.SUCCEEDED)
        ended = _ended(everything, database_now(session) - after)
        old = session.scalars(select(Job.id).where(ended, Job.id >= min(logs), Job.id <= max(logs))).all()
    gone = [logs[job_id] for job_id in old if job_id in logs]
    for path in gone:
        path.unlink(missing_ok=True)
        # Left where a worker was killed while it dropped the older half.
        path.with_suffix(".part").unlink(missing_ok=True)
    return len(gone)


def _remove_run_directories(database: Database, runs_dir: Path, before: float) -> int:
    """Those that an attempt left whose worker was killed."""
    removed = 0
    for directory in runs_dir.glob("*-*"):
        match = _RUN_DIRECTORY.fullmatch(directory.name)
        try:
            is_young = directory.stat().st_mtime >= before
        except FileNotFoundError:
            continue
        if match is None or is_young:
            continue
        job_id, attempt = int(match[1]), int(match[2])
        with database.reading() as session:
            is_held = session.scalar(
                select(Job.id).where(
                    Job.id == job_id,
                    Job.attempt == attempt,
                    Job.state.in_((JobState.RUNNING, JobState.CANCELLING)),
                )
            )
        if is_held is None:
            shutil.rmtree(directory, ignore_errors=True)
            removed += 1
    return removed


def _ended(states: Sequence[JobState], before: object) -> ColumnElement[bool]:
    return and_(Job.state.in_(states), Job.finished_at < before)


def _named(session: Session, hashes: list[str]) -> set[str]:
    files = session.scalars(select(JobFile.sha256).where(JobFile.sha256.in_(hashes)))
    uploads = session.scalars(select(Upload.sha256).where(Upload.sha256.in_(hashes)))
    return {*files, *uploads}
