"""The client's methods, each against a real service."""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from pathlib import Path

import pytest

from app import jobs
from app.db.database import Database
from app.jobs import job_log, workers
from gkl.answers import JobKind, JobState
from gkl.client import Client, ClientError, Conflict, NotFound
from gkl.recipes import RECIPES
from tests.app.boards.test_results import measure, train
from tests.app.jobs.test_job_metrics import finished, trained
from tests.specs import tiny_train_spec

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


# --- jobs --------------------------------------------------------------------------------------------------------


def test_a_job_is_sent_as_a_model_or_as_json(client: Client) -> None:
    spec = tiny_train_spec(name="Ada's")
    first = client.submit(spec, submitter="Ada", priority=3)
    second = client.submit(spec.model_dump(mode="json"))
    assert (first.id, second.id) == (1, 2), "two calls are two jobs"
    assert (first.name, first.submitter, first.priority, first.state) == ("Ada's", "Ada", 3, JobState.QUEUED)
    assert first.spec == second.spec
    again = client.submit(spec, key="mine")
    assert client.submit(spec, key="mine").id == again.id
    with pytest.raises(Conflict):
        client.submit(tiny_train_spec(name="Another"), key="mine")
    assert client.job(1) == first


def test_jobs_are_read_page_by_page(client: Client, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gkl.client.client._JOBS_PER_PAGE", 2)
    for number in range(5):
        client.submit(tiny_train_spec(name=f"Job {number}"))
    client.cancel(2)
    assert [job.id for job in client.jobs()] == [5, 4, 3, 2, 1]
    assert [job.id for job in client.jobs(limit=3)] == [5, 4, 3]
    assert [job.id for job in client.jobs(limit=0)] == []
    assert [job.id for job in client.jobs(state=JobState.CANCELLED)] == [2]
    assert [job.id for job in client.jobs(state="queued", kind="train", limit=2)] == [5, 4]
    assert list(client.jobs(kind=JobKind.EVALUATE)) == []
    with pytest.raises(ClientError, match=r"query\.state"):
        next(client.jobs(state="lost"))


def test_a_log_is_read_from_where_it_was_left(client: Client, database: Database) -> None:
    job = client.submit(tiny_train_spec())
    assert client.log(job.id).text == ""
    with database.writing() as session:
        job_log.append(session, job.id, "first Имя\n".encode(), max_bytes=1000)
    part = client.log(job.id)
    assert part.text == "first Имя\n"
    with database.writing() as session:
        job_log.append(session, job.id, b"second\n", max_bytes=1000)
    assert client.log(job.id, part.end).content == b"second\n"


def test_the_points_of_a_trainings_curves_are_read(client: Client, database: Database) -> None:
    job_id = trained(database, finished(1), finished(2))
    assert [(epoch.epoch, epoch.parts["kl"]) for epoch in client.curves(job_id).epochs] == [(1, 0.03125), (2, 0.03125)]
    with pytest.raises(NotFound, match="no job 99"):
        client.curves(99)


def test_a_job_is_cancelled_and_queued_again(client: Client) -> None:
    job = client.submit(tiny_train_spec())
    assert client.cancel(job.id).state is JobState.CANCELLED
    assert client.retry(job.id).state is JobState.QUEUED
    with pytest.raises(Conflict):
        client.retry(job.id)


# --- results -----------------------------------------------------------------------------------------------------


def test_a_model_comes_with_all_its_pages(url: str, database: Database) -> None:
    weights = train(database, "Often measured")
    for number in range(103):
        measure(database, weights, robust=100 + number)
    with Client(url) as client:
        model = client.model(1)
    assert [evaluation.id for evaluation in model.evaluations] == list(range(103, 0, -1))
    assert [(entry.threat_model, entry.rank) for entry in model.entries] == [("Linf", 1)]
    assert model.next_cursor is None


def test_boards_and_what_is_on_them(client: Client, measured: Path) -> None:
    (about,) = client.boards()
    assert (about.dataset, about.threat_model, about.num_entries) == ("digits", "Linf", 1)
    (entry,) = client.board("digits", "Linf")
    assert (entry.name, entry.rank) == ("Measured", 1)
    detail = client.entry(entry.id)
    assert detail.external_attacks == []
    assert detail.next_cursor is None
    assert detail.robust == entry.robust
    for dataset, name in (("digits", "Linf-7"), ("a/b?c", "../x")):
        with pytest.raises(ClientError):
            client.board(dataset, name)
    with pytest.raises(NotFound):
        client.entry(7)


def test_a_board_as_a_file(client: Client, measured: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(b"".join(client.export("digits", "Linf", "csv")).decode())))
    assert len(rows) == 1
    assert list(client.export("digits", "Linf", "json", q="nothing has this name"))
    with pytest.raises(NotFound):
        next(client.export("digits", "Linf-7", "csv"))


def test_points_of_entries_and_evaluations(
    client: Client, database: Database, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (entry,) = client.board("digits", "Linf")
    assert entry.weights_id is not None
    (evaluation,) = client.model(entry.weights_id).evaluations
    for of in (entry, evaluation):
        points = list(client.points(of))
        assert [point.index for point in points] == [0, 1, 2, 3, 4]
        assert [point.broken_by for point in points] == [None, "APGD-CE", None, None, None]
        assert points[1].adversarial_prediction == 7
    measure(database, train(database, "Without"), robust=100, epsilon=0.1)
    (without,) = client.board("digits", "Linf-0.1")
    with pytest.raises(NotFound, match="has no certificate"):
        next(client.points(without))


# --- the service -------------------------------------------------------------------------------------------------


def test_workers_recipes_and_oneself(client: Client, database: Database) -> None:
    assert client.workers() == []
    with database.writing() as session:
        workers.record_heartbeat(session, "h/1", host="h", device="CPU")
    (worker,) = client.workers()
    assert (worker.name, worker.state) == ("h/1", "idle")
    assert list(client.recipes()) == list(RECIPES)
    assert client.recipes()["digits"] == RECIPES["digits"]()
    assert client.whoami().name == "anonymous"
    with database.writing() as session:
        jobs.create(session, tiny_train_spec())
        jobs.claim(session, worker="h/1", lease=timedelta(seconds=90))
    assert client.workers()[0].state == "busy"
