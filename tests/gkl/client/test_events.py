"""A job that is followed to its end, and what follows from it."""

from __future__ import annotations

import sys
from datetime import timedelta
from threading import Timer
from typing import Any

import pytest

from app import jobs
from app.db.database import Database
from gkl.answers import JobState
from gkl.client import Client, NotFound, StreamEvent
from gkl.errors import FailureCode
from gkl.outcome import AttackFinished, Progress
from tests.servers import limited_proxy
from tests.specs import tiny_train_spec

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def taken(database: Database) -> Any:
    with database.writing() as session:
        claim = jobs.claim(session, worker="h/1", lease=timedelta(seconds=90))
        assert claim is not None
        return claim


def test_waiting_ends_with_what_follows(client: Client, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    job = client.submit(tiny_train_spec())

    def train_then_fail() -> None:
        claim = taken(database)
        with database.writing() as session:
            trained = jobs.succeed(session, claim)
            jobs.create(session, tiny_train_spec(name="After"), parent_id=trained.id)
        claim = taken(database)
        with database.writing() as session:
            jobs.fail(session, claim, FailureCode.OUT_OF_MEMORY, "lower batch_size")

    timer = Timer(0.3, train_then_fail)
    timer.start()
    first, second = client.wait(job.id)
    timer.join()
    assert (first.id, first.state) == (job.id, JobState.SUCCEEDED)
    assert (second.parent_id, second.state) == (job.id, JobState.FAILED)
    assert second.failure is not None
    assert second.failure.code is FailureCode.OUT_OF_MEMORY
    capsys.readouterr()
    assert client.wait(job.id, progress=False) == [first, second], "also of what has ended already"
    assert capsys.readouterr().err == ""


def test_waiting_needs_no_bar(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    job = client.submit(tiny_train_spec())
    client.cancel(job.id)
    (ended,) = client.wait(job.id)
    assert ended.state is JobState.CANCELLED


def test_a_broken_stream_is_taken_up_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gkl.client.events._RECONNECT_SECONDS", 0.01)
    with limited_proxy(url, halves=2) as proxy, Client(url) as direct, Client(proxy.url) as client:
        job = direct.submit(tiny_train_spec())
        direct.cancel(job.id)
        states = [event.data["state"] for event in client.events(job.id) if event.type == "state"]
        assert proxy.halves == 0
    assert states == ["queued", "cancelled"]


def test_there_is_nothing_to_wait_for_where_there_is_no_job(client: Client) -> None:
    with pytest.raises(NotFound):
        client.wait(7)


def test_what_a_run_reported_is_read_back(client: Client) -> None:
    progress = Progress(stage="training", fraction=0.5)
    assert StreamEvent("progress", progress.model_dump(mode="json")).of_run == progress
    outcome = {"attack": "APGD-CE", "points": 4, "broken": 1, "seconds": 1.0}
    attack = StreamEvent("attack", {"outcome": outcome}).of_run
    assert isinstance(attack, AttackFinished)
    assert attack.outcome.survivors == 3
    assert StreamEvent("state", {"state": "queued"}).of_run is None
    assert StreamEvent("progress", {"of": "a later version"}).of_run is None
