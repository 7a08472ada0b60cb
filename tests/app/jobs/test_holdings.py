"""What is said of a job whose data set or published weights no worker has; how busy workers are; whose jobs wait."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import func, select

from app import jobs
from app.db.database import Database, database_now
from app.db.tables import WorkerLoad, WorkerRow
from app.http.service import Service
from app.jobs import workers
from app.jobs.workers import Seen, Waiting
from app.maintenance.cleanup import clean
from app.web.worker_days import day_of
from gkl.answers import LoadView
from tests.app.web.test_pages import words
from tests.databases import either_database
from tests.specs import tiny_train_spec

pytestmark = either_database

PUBLISHED = {
    "kind": "evaluate",
    "name": "Published",
    "dataset": "cifar10",
    "architecture": "cifar10/Linf/Carmon2019Unlabeled",
    "weights": "robustbench",
    "evaluation": {"threat_model": {"norm": "Linf", "epsilon": "8/255"}},
}
LOAD = LoadView(is_gpu=True, busy=0.25, memory_bytes=10**9, memory_total_bytes=4 * 10**9)


def beat(database: Database, name: str, seen: Seen, **changes: Any) -> None:
    with database.writing() as session:
        workers.record_heartbeat(session, name, host="h", device="CPU", seen=seen, **changes)


def missing(client: TestClient, spec: dict[str, Any]) -> str | None:
    sent = client.post("/api/v1/jobs", json=spec)
    assert sent.status_code == 202, sent.text
    again = client.get(f"/api/v1/jobs/{sent.json()['id']}").json()["missing"]
    assert again == sent.json()["missing"]
    said: str | None = again
    return said


def test_a_job_says_what_no_worker_has(client: TestClient, database: Database) -> None:
    assert "no worker is running" in str(missing(client, PUBLISHED))
    beat(database, "h/1", Seen(datasets=["digits"], published=[]))
    said = str(missing(client, PUBLISHED))
    assert "has the files of CIFAR-10: a run fails" in said
    assert "has the published weights of cifar10/Linf/Carmon2019Unlabeled on its disk" in said
    assert "No running worker has the files of CIFAR-10" in words(client, "/jobs/2")
    corrupted = PUBLISHED | {"weights": "robustbench", "evaluation": {"protocol": "corruptions"}}
    beat(database, "h/2", Seen(datasets=["cifar10"], published=["cifar10/Linf/Carmon2019Unlabeled"]))
    assert missing(client, PUBLISHED) is None
    assert "has the files of CIFAR-10-C" in str(missing(client, corrupted))


def test_of_a_worker_that_has_not_told_nobody_knows(client: TestClient, database: Database) -> None:
    beat(database, "h/1", Seen(datasets=["digits"], published=[]))
    beat(database, "h/2", Seen())
    assert missing(client, PUBLISHED) is None


def test_a_worker_that_is_lost_or_stops_counts_for_nothing(client: TestClient, database: Database) -> None:
    holds = Seen(datasets=["cifar10"], published=["cifar10/Linf/Carmon2019Unlabeled"])
    beat(database, "h/1", holds, is_draining=True)
    beat(database, "h/2", holds)
    with database.writing() as session:
        session.get_one(WorkerRow, "h/2").heard_at = database_now(session) - timedelta(days=1)
    assert "no worker is running" in str(missing(client, PUBLISHED))


def test_a_job_that_runs_or_has_ended_misses_nothing(client: TestClient, database: Database) -> None:
    job_id = client.post("/api/v1/jobs", json=PUBLISHED).json()["id"]
    with database.writing() as session:
        jobs.claim(session, worker="w", lease=timedelta(seconds=90))
    assert client.get(f"/api/v1/jobs/{job_id}").json()["missing"] is None


def test_how_busy_a_worker_was_is_kept_for_a_day_in_few_rows(database: Database, service: Service) -> None:
    for _ in range(3):
        beat(database, "h/1", Seen(load=LOAD))
    with database.writing() as session:
        (kept,) = session.scalars(select(WorkerLoad))
        kept.taken_at -= timedelta(minutes=6)
    beat(database, "h/1", Seen(load=LOAD))
    with database.reading() as session:
        assert len(workers.loads(session)["h/1"]) == 2
    with database.writing() as session:
        for each in session.scalars(select(WorkerLoad)):
            each.taken_at -= timedelta(days=1)
    # What is older goes with the worker's next one, and that of a worker that is gone with the cleanup.
    beat(database, "h/1", Seen(load=LOAD))
    with database.writing() as session:
        assert session.scalar(select(func.count()).select_from(WorkerLoad)) == 1
        session.scalars(select(WorkerLoad)).one().taken_at -= timedelta(days=2)
    clean(service)
    with database.reading() as session:
        assert session.scalars(select(WorkerLoad)).all() == []


def test_a_day_is_drawn_with_gaps_where_nothing_was_heard(database: Database) -> None:
    with database.reading() as session:
        now = database_now(session)
    rows = [
        WorkerLoad(worker="h/1", taken_at=now - timedelta(hours=hours), busy=busy, memory_bytes=2 * 10**9)
        for hours, busy in ((24.0, 0.0), (12.0, 1.0), (11.9, 0.5), (0.0, None))
    ]
    found = day_of(rows, 4 * 10**9, now)
    assert found is not None
    assert found.busy == "M0.0 24.0 M144.0 0.0 L145.2 12.0"
    assert found.memory == "M0.0 12.0 M144.0 12.0 L145.2 12.0 M288.0 12.0"
    assert found.words == "busy 50 % on average, at most 2.0 GB"
    assert day_of(rows[:1], 4 * 10**9, now) is None


def test_the_queue_is_told_by_person(client: TestClient, database: Database) -> None:
    with database.writing() as session:
        for submitter in ("Ada", "Bob", "Bob", "Eve"):
            jobs.create(session, tiny_train_spec(), submitter=submitter)
        jobs.request_cancel(session, 4)
        jobs.claim(session, worker="h/1", lease=timedelta(seconds=90))
    beat(database, "h/1", Seen(datasets=["digits"], published=[], load=LOAD))
    with database.reading() as session:
        assert workers.queue(session) == [Waiting("Ada", 0, 1), Waiting("Bob", 2, 0)]
    text = words(client, "/workers")
    assert "Ada 0 1 Bob 2 0" in text
    assert "GPU 25 % 1.0 GB of 4.0 GB" in text
    view = client.get("/api/v1/workers").json()[0]
    assert (view["datasets"], view["published"]) == (["digits"], [])
    assert view["load"] == LOAD.model_dump(mode="json")
