"""What a run is given of its host."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from joblib import cpu_count
from sqlalchemy import text

from app import jobs
from app.db.database import Database
from app.http.service import Service
from app.jobs import workers
from gkl.recipes.adversarial import digits
from worker.celery_app import make_worker
from worker.run_process import run_environment
from worker.supervisor import Supervisor


def test_a_run_has_its_share_of_the_cores_and_threads_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    found = run_environment(3)
    assert (found["OMP_NUM_THREADS"], found["OMP_WAIT_POLICY"]) == ("3", "PASSIVE")
    # What the host's owner says goes before.
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run_environment(3)["OMP_NUM_THREADS"] == "7"


def test_the_living_workers_of_a_host_share_its_cores(service: Service, database: Database, tmp_path: Path) -> None:
    host = socket.gethostname()
    with database.writing() as session:
        for name in ("a", "b", "lost"):
            workers.record_heartbeat(session, f"{host}/{name}", host=host, device="CPU")
        workers.record_heartbeat(session, "elsewhere/c", host="elsewhere", device="CPU")
        session.execute(text("UPDATE workers SET heard_at = '2026-01-01 00:00:00+00:00' WHERE name LIKE '%lost'"))
        jobs.create(session, digits())
    worker = make_worker(service.settings)
    claim = worker._claim()
    assert claim is not None
    with Supervisor(service.settings, database, service.store, claim, worker.stopping) as supervisor:
        assert supervisor._threads() == max(1, cpu_count() // 2)
        # A worker that is let use fewer cores gives its run fewer.
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(allowed)})
            assert supervisor._threads() == 1
        finally:
            os.sched_setaffinity(0, allowed)
    worker.database.close()
