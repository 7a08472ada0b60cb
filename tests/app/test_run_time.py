"""What is said of a job that will not fit into its time."""

from __future__ import annotations

from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from app import jobs, leaderboard, run_time
from app.database import Database
from app.main import create_app
from app.settings import Settings
from gkl.outcome import EpochFinished
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel, TrainSpec
from tests.app.test_leaderboard import measure, train
from tests.databases import either_database
from tests.local import local_client
from tests.specs import tiny_train_spec

pytestmark = either_database


def trained(database: Database, spec: TrainSpec, *seconds: float) -> int:
    """A training whose epochs took so long."""
    with database.writing() as session:
        job = jobs.create(session, spec)
        claim = jobs.claim(session, worker="w", lease=timedelta(seconds=90))
        assert claim is not None
        for number, each in enumerate(seconds, 1):
            epoch = EpochFinished(
                epoch=number,
                epochs=spec.epochs,
                loss=1,
                clean_accuracy=0,
                adversarial_accuracy=0,
                epsilon=0.1,
                learning_rate=0.1,
                seconds=each,
            )
            jobs.record(session, claim, epoch)
        leaderboard.record_model(session, jobs.succeed(session, claim), spec, f"{job.id:064x}")
        return job.id


@pytest.fixture
def client(settings: Settings) -> TestClient:
    return local_client(create_app(settings.model_copy(update={"max_run_seconds": 3600.0})))


def test_a_training_that_cannot_fit_is_told_when_it_is_sent(client: TestClient, database: Database) -> None:
    spec = tiny_train_spec(evaluation=None)
    first = trained(database, spec, 20.0, 10.0, 10.0)
    with client:
        longer = spec.model_copy(update={"epochs": 361, "seed": 7, "name": "Longer"}).model_dump(mode="json")
        sent = client.post("/api/v1/jobs", json=longer)
        assert sent.status_code == 202
        said = sent.json()["warning"]
        assert said.startswith(f"as job {first} tells, it will be on workers for about 1 h")
        assert "timed_out" in said
        number = sent.json()["id"]
        with database.reading() as session:
            assert said in jobs.events_after(session, number, 0)[0].data["reason"]
        assert said in client.get(f"/jobs/{number}").text
        fits = client.post("/api/v1/jobs", json=longer | {"epochs": 359})
        assert fits.json()["warning"] is None
        unknown = client.post("/api/v1/jobs", json=longer | {"batch_size": 17})
        assert unknown.json()["warning"] is None, "nothing is known of its epochs"


def test_an_evaluation_is_told_by_others_of_its_architecture(database: Database) -> None:
    """Two seconds for 360 points, and half as long for each of two that share them."""
    weights = train(database, "Measured")
    job_id = measure(database, weights, robust=100)
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.1))
    spec = EvaluateSpec(name="x", dataset="digits", architecture="small_cnn", weights=weights, evaluation=evaluation)

    def said(spec: EvaluateSpec, seconds: float) -> str | None:
        with database.reading() as session:
            return run_time.warning(session, spec, max_seconds=seconds)

    assert (said(spec, 1.9) or "").startswith(f"as job {job_id} tells")
    assert said(spec, 2.1) is None
    shared = spec.model_copy(update={"evaluation": evaluation.model_copy(update={"shards": 2})})
    assert said(shared, 0.9) is not None
    assert said(shared, 1.1) is None
    other = spec.model_copy(update={"evaluation": Evaluation(threat_model=ThreatModel(norm="L2", epsilon=0.1))})
    assert said(other, 0.1) is None, "nothing is known of its attacks"


def test_how_long_it_takes_is_told_by_the_newest_that_are_alike(database: Database) -> None:
    spec = tiny_train_spec(evaluation=None)
    for seconds in (10.0, 30.0, 20.0):
        trained(database, spec, seconds)
    trained(database, spec.model_copy(update={"batch_size": 17}), 500.0)
    with database.reading() as session:
        longer = spec.model_copy(update={"epochs": 120, "seed": 3})
        assert run_time.estimate(session, longer) == run_time.Estimate(2400.0, 3)
        assert str(run_time.estimate(session, longer)) == "about 40 min 00 s on a worker here, from 3 earlier jobs"
        assert run_time.estimate(session, spec.model_copy(update={"batch_size": 18})) is None
