from __future__ import annotations

import os
import time
from datetime import timedelta

from app import jobs
from app.core.settings import Settings
from app.db.database import Database
from tests.specs import tiny_train_spec
from worker.run_directories import remove_left


def test_those_of_nobody_go(database: Database, settings: Settings) -> None:
    """As killed workers leave them; those of a run that is held stay however old."""
    with database.writing() as session:
        job_id = jobs.create(session, tiny_train_spec()).id
        claim = jobs.claim(session, worker="w", lease=timedelta(seconds=90))
    assert claim is not None
    for name in (f"{job_id}-1", f"{job_id}-2", "999-1", "999-2", "some-thing"):
        directory = settings.runs_dir / name
        directory.mkdir(parents=True)
        if name != "999-2":
            long_ago = time.time() - 3600
            os.utime(directory, (long_ago, long_ago))
    remove_left(settings, database)
    left = {path.name for path in settings.runs_dir.iterdir() if path.is_dir()}
    assert left == {f"{job_id}-1", "999-2", "some-thing"}
