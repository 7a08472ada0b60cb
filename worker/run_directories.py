"""The directories in which attempts keep their files while they run, and their removal after a worker was killed."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from sqlalchemy import select

from app import jobs
from app.core.settings import Settings
from app.db.database import Database
from app.db.tables import Job
from app.store import disk_now
from gkl.answers import HELD

_log = logging.getLogger(__name__)

_NAME = re.compile(r"(\d+)-(\d+)")


def run_directory(settings: Settings, claim: jobs.Claim) -> Path:
    """The directory of one attempt.

    Each attempt has its own, so that an attempt that has lost its job without knowing it changes no file of the next.
    """
    return settings.runs_dir / f"{claim.job_id}-{claim.attempt}"


def remove_left(settings: Settings, database: Database, *, young_seconds: float | None = None) -> None:
    """Remove directories whose attempts no longer hold a job. Each worker does this in its own data directory.

    Args:
        settings: this worker's.
        database: the service's, with the jobs.
        young_seconds: directories younger than this stay; by default the setting of this name.
    """
    before = disk_now(settings.data_dir) - (settings.young_seconds if young_seconds is None else young_seconds)
    for directory in settings.runs_dir.glob("*-*"):
        match = _NAME.fullmatch(directory.name)
        try:
            is_young = directory.stat().st_mtime >= before
        except FileNotFoundError:
            continue
        if match is None or is_young or _is_held(database, int(match[1]), int(match[2])):
            continue
        shutil.rmtree(directory, ignore_errors=True)
        _log.info("removed %s, which a worker left that was killed", directory.name)


def _is_held(database: Database, job_id: int, attempt: int) -> bool:
    with database.reading() as session:
        found = session.scalar(select(Job.id).where(Job.id == job_id, Job.attempt == attempt, Job.state.in_(HELD)))
    return found is not None
