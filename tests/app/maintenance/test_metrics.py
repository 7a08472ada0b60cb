"""What Prometheus is told, against rows that the service's own calls have made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app import jobs
from app.core.settings import Settings
from app.db import migrations
from app.db.database import Database, database_now
from app.db.tables import Job, JobEvent, MetricRun
from app.http.service import Service
from app.jobs import metric_sums, workers
from app.main import create_app
from app.maintenance import metrics, upgrading
from app.maintenance.relay import Relay
from gkl.errors import FailureCode
from gkl.outcome import AttackFinished, AttackOutcome, EpochFinished, Resources
from gkl.recipes.adversarial import digits
from tests.app.routes.test_api import SPEC
from tests.local import local_client, serving

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
LEASE = timedelta(seconds=90)


def scrape(client: TestClient) -> Samples:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = text_string_to_metric_families(response.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"gklbench_{name}", frozenset(labels.items())))


@pytest.fixture
def no_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute is long in a test; nothing else writes here."""
    monkeypatch.setattr(metric_sums, "LAG", timedelta(0))


def epoch(number: int, seconds: float) -> EpochFinished:
    return EpochFinished(
        epoch=number,
        epochs=9,
        seconds=seconds,
        metrics={
            "loss": 1,
            "clean_accuracy": 1,
            "adversarial_accuracy": 1,
            "epsilon": 0.1,
            "learning_rate": 0.1,
        },
    )


def attack(name: str, seconds: float) -> AttackFinished:
    return AttackFinished(outcome=AttackOutcome(attack=name, points=9, broken=1, seconds=seconds))


def test_requests_are_counted_by_template_and_never_by_address(client: TestClient) -> None:
    for path in ("/api/v1/jobs/7", "/api/v1/jobs/8", "/jobs/7", "/nothing/1", "/nothing/2", "/static/icon.svg"):
        client.get(path)
    client.request("BREW", "/api/v1/jobs")
    client.post("/api/v1/jobs", json=SPEC)
    samples = scrape(client)
    found = {
        tuple(dict(labels)[name] for name in ("method", "route", "status")): number
        for (name, labels), number in samples.items()
        if name == "gklbench_http_request_duration_seconds_count"
    }
    assert found == {
        ("GET", "/api/v1/jobs/{job_id}", "404"): 2,
        ("GET", "/jobs/{job_id}", "404"): 1,
        ("GET", "none", "404"): 2,
        ("GET", "/static/{path}", "200"): 1,
        ("other", "/api/v1/jobs", "405"): 1,
        ("POST", "/api/v1/jobs", "202"): 1,
    }
    assert ("process_open_fds", frozenset()) in samples


def test_an_unforeseen_error_is_counted_too(settings: Settings) -> None:
    app = create_app(settings)

    @app.get("/api/broken")
    def broken() -> None:
        raise RuntimeError

    with local_client(app, raise_server_exceptions=False) as client:
        client.get("/api/broken")
        labels = {"method": "GET", "route": "/api/broken", "status": "500"}
        assert value(scrape(client), "http_request_duration_seconds_count", **labels) == 1


def test_queue_workers_and_what_runs(client: TestClient, database: Database, service: Service) -> None:
    with database.writing() as session:
        ids = [jobs.create(session, digits()).id for _ in range(3)]
        workers.record_heartbeat(session, "h/1", host="h", device="GPU")
        workers.record_heartbeat(session, "h/2", host="h", device="GPU", problem="its disk is full")
    with database.writing() as session:
        claim = jobs.claim(session, worker="h/1", lease=LEASE)
        assert claim is not None
        used = Resources(device="H200", peak_memory_bytes=10, peak_gpu_memory_bytes=20, cpu_seconds=1)
        jobs.heartbeat(session, claim, lease=LEASE, resources=used)
        now = database_now(session)
        session.execute(update(Job).where(Job.id == ids[1]).values(due_at=now - timedelta(seconds=500)))
        session.execute(update(Job).where(Job.id == ids[2]).values(due_at=now + timedelta(seconds=500)))
    samples = scrape(client)
    assert value(samples, "jobs", kind="train", state="queued") == 2
    assert value(samples, "jobs", kind="train", state="running") == 1
    assert value(samples, "jobs", kind="evaluate", state="failed") == 0
    assert value(samples, "queue_jobs") == 1
    assert 500 <= (value(samples, "queue_oldest_seconds") or 0) < 600
    assert [value(samples, "workers", state=s) for s in ("busy", "idle", "stuck", "lost")] == [1, 0, 1, 0]
    of_job = {"job_id": str(claim.job_id), "device": "H200"}
    assert value(samples, "running_job_memory_peak_bytes", **of_job) == 10
    assert value(samples, "running_job_gpu_memory_peak_bytes", **of_job) == 20
    assert (value(samples, "data_directory_free_bytes") or 0) > 0
    assert [value(samples, f"{part}_up") for part in ("database", "broker", "store")] == [1, 1, 1]
    before = value(samples, "broker_messages_waiting")
    assert before is not None
    service.publish_pending(ids[1:2])
    samples = scrape(client)
    assert value(samples, "broker_messages_waiting") == before + 1
    with database.writing() as session:
        jobs.end_cancelled(session, claim)
    assert value(scrape(client), "running_job_memory_peak_bytes", **of_job) is None


def test_outcomes_and_seconds_only_grow(client: TestClient, database: Database, no_lag: None) -> None:
    assert value(scrape(client), "job_outcomes_total", kind="train", code="no_progress") == 0

    def fail(session: Session) -> int:
        claim = jobs.claim(session, worker="h/1", lease=LEASE)
        assert claim is not None
        jobs.record_event(session, claim, epoch(claim.attempt, 2.5))
        jobs.fail(session, claim, FailureCode.NO_PROGRESS, "it hung")
        return claim.job_id

    with database.writing() as session:
        jobs.create(session, digits())
        job_id = fail(session)
    first = scrape(client)
    with database.writing() as session:
        # Its time on workers and its failure are forgotten by its row.
        jobs.retry(session, job_id)
    retried = scrape(client)
    for name, labels in (
        ("job_outcomes_total", {"kind": "train", "code": "no_progress"}),
        ("job_run_seconds_total", {"kind": "train"}),
        ("stage_seconds_sum", {"stage": "training"}),
        ("stage_seconds_count", {"stage": "training"}),
    ):
        assert (value(first, name, **labels) or 0) > 0
        assert value(retried, name, **labels) == value(first, name, **labels)
    with database.writing() as session:
        fail(session)
        other = jobs.create(session, digits())
        jobs.request_cancel(session, other.id)
    both = scrape(client)
    assert value(both, "job_outcomes_total", kind="train", code="no_progress") == 2
    assert value(both, "job_outcomes_total", kind="train", code="cancelled") == 1
    assert value(both, "stage_seconds_sum", stage="training") == 5
    assert scrape(client).items() >= {k: v for k, v in both.items() if "job_" in k[0] or "stage" in k[0]}.items()


def test_seconds_on_workers_grow_while_a_job_runs_and_go_on_when_it_ends(
    client: TestClient, settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.writing() as session:
        jobs.create(session, digits())
        claim = jobs.claim(session, worker="h/1", lease=LEASE)
        assert claim is not None
        for event in session.query(JobEvent):
            event.created_at -= timedelta(minutes=10)
    running = value(scrape(client), "job_run_seconds_total", kind="train")
    assert running is not None
    # Until a minute ago: what has just been committed is not counted yet.
    assert 540 <= running < 570
    with database.writing() as session:
        jobs.hand_back(session, claim)
    after = value(scrape(client), "job_run_seconds_total", kind="train")
    assert after is not None
    assert running <= after < 570
    monkeypatch.setattr(metric_sums, "LAG", timedelta(0))
    assert value(scrape(client), "job_run_seconds_total", kind="train") == pytest.approx(600, abs=10)
    # Another process comes to the same.
    with serving(settings) as other:
        assert value(scrape(other), "job_run_seconds_total", kind="train") == pytest.approx(600, abs=10)


def test_stages_are_of_all_time_and_each_attack_counts_once(
    client: TestClient, settings: Settings, database: Database, no_lag: None
) -> None:
    with database.writing() as session:
        jobs.create(session, digits())
        claim = jobs.claim(session, worker="h/1", lease=LEASE)
        assert claim is not None
        jobs.record_event(session, claim, epoch(1, 100))
        jobs.record_event(session, claim, attack("APGD-CE", 100))
    assert value(scrape(client), "stage_seconds_sum", stage="training") == 100
    with database.writing() as session:
        jobs.record_event(session, claim, epoch(2, 3))
        # A run that goes on tells again of what was finished before.
        jobs.record_event(session, claim, attack("APGD-CE", 100))
        jobs.record_event(session, claim, attack("Square", 7))
        jobs.record_event(session, claim, attack("Square", 7))
    with serving(settings) as other:
        for samples in (scrape(client), scrape(other)):
            assert value(samples, "stage_seconds_sum", stage="training") == 103
            assert value(samples, "stage_seconds_count", stage="training") == 2
            assert value(samples, "stage_seconds_sum", stage="APGD-CE") == 100
            assert value(samples, "stage_seconds_sum", stage="Square") == 7
            assert value(samples, "stage_seconds_count", stage="Square") == 1


def some_history(database: Database) -> None:
    """A training that failed after two epochs, another that runs."""
    with database.writing() as session:
        jobs.create(session, digits())
        jobs.create(session, digits())
        claim = jobs.claim(session, worker="h/1", lease=LEASE)
        assert claim is not None
        for number in (1, 2):
            jobs.record_event(session, claim, epoch(number, 5))
        jobs.fail(session, claim, FailureCode.NO_PROGRESS, "it hung")
        assert jobs.claim(session, worker="h/1", lease=LEASE) is not None


def counted(samples: Samples) -> list[float | None]:
    return [
        value(samples, "job_outcomes_total", kind="train", code="no_progress"),
        value(samples, "stage_seconds_count", stage="training"),
        value(samples, "stage_seconds_sum", stage="training"),
    ]


def test_sums_survive_the_removal_of_what_they_are_of(client: TestClient, database: Database, no_lag: None) -> None:
    some_history(database)
    assert counted(scrape(client)) == [1, 2, 10]
    with database.writing() as session:
        session.execute(delete(JobEvent))
    assert counted(scrape(client)) == [1, 2, 10]
    # Numbers of events begin anew then, on SQLite; what happens next is counted all the same.
    some_history(database)
    assert counted(scrape(client)) == [2, 4, 20]
    assert counted(scrape(client)) == [2, 4, 20]


def test_the_relay_counts_what_it_is_about_to_remove(
    service: Service, database: Database, client: TestClient, no_lag: None
) -> None:
    some_history(database)
    relay = Relay(service)
    relay.last_cleanup = relay.away_at = time.monotonic() - 10_000
    relay._clean()
    with database.writing() as session:
        session.execute(delete(JobEvent))
    assert counted(scrape(client)) == [1, 2, 10]


def test_a_history_too_long_for_one_scrape_is_counted_by_the_next_ones(
    client: TestClient, database: Database, no_lag: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_sums, "_EVENTS_AT_ONCE", 3)
    monkeypatch.setattr(metrics, "_COUNTS_SECONDS", 0.0)
    some_history(database)
    seconds, ends = [], []
    for _ in range(5):
        samples = scrape(client)
        ends.append(value(samples, "job_outcomes_total", kind="train", code="no_progress"))
        seconds.append(value(samples, "job_run_seconds_total", kind="train") or 0)
    assert ends == sorted(ends, key=lambda number: number or 0)
    assert (ends[0], ends[-1]) == (0, 1)
    assert seconds == sorted(seconds)


def test_processes_that_are_asked_at_once_count_once(database: Database, no_lag: None) -> None:
    for _ in range(5):
        some_history(database)
    start = threading.Barrier(4)

    def ask(_: int) -> int:
        start.wait()
        return metric_sums.updated_sums(database, patience_seconds=60).ends["train", "no_progress"]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(4))) == [5, 5, 5, 5]


def test_the_step_to_sums_counts_what_happened_before(database: Database, no_lag: None) -> None:
    some_history(database)
    migrations.downgrade(database, "0009")
    upgrading.upgrade(database)
    with database.writing() as session:
        session.execute(delete(JobEvent).where(JobEvent.job_id == 1))
        assert session.scalars(select(MetricRun.job_id)).all() == [2]
    sums = metric_sums.updated_sums(database, patience_seconds=60)
    assert sums.ends["train", "no_progress"] == 1
    assert sums.stages == {"training": (2, 10)}


def test_what_is_away_is_told_and_takes_nothing_else_with_it(settings: Settings, tmp_path: Path) -> None:
    changes = {"database_url": f"sqlite:///{tmp_path / 'empty.sqlite3'}", "broker_url": "redis://127.0.0.1:1/0"}
    with serving(settings.model_copy(update=changes)) as client:
        samples = scrape(client)
        assert (value(samples, "database_up"), value(samples, "broker_up")) == (0, 0)
        assert (value(samples, "data_directory_free_bytes") or 0) > 0
        assert value(samples, "queue_jobs") is None
        assert value(samples, "broker_messages_waiting") is None
        labels = {"method": "GET", "route": "/metrics", "status": "200"}
        assert value(scrape(client), "http_request_duration_seconds_count", **labels) == 1
        shutil.rmtree(settings.data_dir)
        assert value(scrape(client), "data_directory_free_bytes") is None


@pytest.mark.system
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_several_processes_behind_one_address_add_up(settings: Settings, tmp_path: Path) -> None:
    """Each asks for its own health and then tells of all."""
    code = """
import sys
from fastapi.testclient import TestClient
from app.main import create_app
from app.maintenance.relay import Relay
client = TestClient(create_app(), base_url="http://127.0.0.1", client=("127.0.0.1", 1))
client.get("/healthz")
sys.stdout.write(client.get("/metrics").text)
"""
    directory = tmp_path / "prometheus"
    directory.mkdir()
    environment = {**os.environ, **settings.environment(), "PROMETHEUS_MULTIPROC_DIR": str(directory)}
    for number in (1, 2):
        told = subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
        ).stdout
        line = f'gklbench_http_request_duration_seconds_count{{method="GET",route="/healthz",status="200"}} {number}.0'
        assert line in told.splitlines()
        assert "gklbench_queue_jobs 0.0" in told.splitlines()
