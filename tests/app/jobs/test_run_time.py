"""What is said of a job that will not fit into its time."""

from __future__ import annotations

from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from app import jobs
from app.boards import results
from app.core.settings import Settings
from app.db.database import Database, database_now
from app.jobs import run_time
from app.main import create_app
from gkl.outcome import EpochFinished, Progress
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel, TrainSpec
from tests.app.boards.test_results import LEASE, measure, train
from tests.databases import either_database
from tests.local import local_client
from tests.specs import tiny_train_spec

pytestmark = either_database


def trained(database: Database, spec: TrainSpec, *seconds: float, worker: str = "w") -> int:
    """A training whose epochs took so long."""
    with database.writing() as session:
        job = jobs.create(session, spec)
        claim = jobs.claim(session, worker=worker, lease=timedelta(seconds=90))
        assert claim is not None
        for number, each in enumerate(seconds, 1):
            epoch = EpochFinished(
                epoch=number,
                epochs=spec.epochs,
                seconds=each,
                metrics={
                    "loss": 1,
                    "clean_accuracy": 0,
                    "adversarial_accuracy": 0,
                    "epsilon": 0.1,
                    "learning_rate": 0.1,
                },
            )
            jobs.record_event(session, claim, epoch)
        results.record_model(session, jobs.succeed(session, claim), spec, f"{job.id:064x}")
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
        assert said.startswith(f"judging by job {first}, it will run for about 1 h")
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

    assert (said(spec, 1.9) or "").startswith(f"judging by job {job_id}, ")
    assert said(spec, 2.1) is None
    shared = spec.model_copy(update={"evaluation": evaluation.model_copy(update={"shards": 2})})
    assert said(shared, 0.9) is not None
    assert said(shared, 1.1) is None
    other = spec.model_copy(update={"evaluation": Evaluation(threat_model=ThreatModel(norm="L2", epsilon=0.1))})
    assert said(other, 0.1) is None, "nothing is known of its attacks"


def claimed(database: Database, spec: TrainSpec | EvaluateSpec, progress: Progress | None = None) -> int:
    """A job that a worker of host-b has had for ten seconds."""
    with database.writing() as session:
        job_id = jobs.create(session, spec).id
        claim = jobs.claim(session, worker="host-b/7", lease=LEASE)
        assert claim is not None
        jobs.get(session, job_id).claimed_at = database_now(session) - timedelta(seconds=10)
        if progress is not None:
            jobs.heartbeat(session, claim, lease=LEASE, progress=progress)
    return job_id


def expected(database: Database, job_id: int) -> tuple[float, str] | None:
    with database.reading() as session:
        found = run_time.expected(session, jobs.get(session, job_id), database_now(session))
    return None if found is None else (found.seconds_left, found.source)


def test_before_a_job_says_anything_earlier_ones_tell_when_it_will_end(database: Database) -> None:
    spec = tiny_train_spec(evaluation=None, epochs=10)
    assert expected(database, claimed(database, spec)) is None, "nothing is known yet"
    elsewhere = trained(database, spec, 9.0, worker="host-a/1")
    left, source = expected(database, claimed(database, spec)) or (0, "")
    assert (left, source) == (pytest.approx(80, abs=5), f"as job {elsewhere} took on other hosts")
    here = [trained(database, spec, seconds, worker="host-b/3") for seconds in (4.0, 6.0)]
    left, source = expected(database, claimed(database, spec)) or (0, "")
    assert (left, source) == (pytest.approx(40, abs=5), f"as job {here[1]} and job {here[0]} took on this host")
    with database.writing() as session:
        queued = jobs.create(session, spec.model_copy(update={"epochs": 2})).id
    left, source = expected(database, queued) or (0, "")
    assert left == pytest.approx(12), "the median of three, for two epochs"
    assert "on this host" not in source, "it has none yet"


def test_what_costs_other_time_tells_only_where_nothing_else_does(database: Database) -> None:
    spec = tiny_train_spec(evaluation=None, epochs=10)
    other = trained(database, spec.model_copy(update={"batch_size": 64}), 50.0, worker="host-b/1")
    assert (expected(database, claimed(database, spec)) or (0, ""))[1] == f"as job {other} took on this host"
    same = trained(database, spec, 5.0, worker="host-b/1")
    assert (expected(database, claimed(database, spec)) or (0, ""))[1] == f"as job {same} took on this host"
    trained(database, spec, 0.5, worker="host-b/1")
    trained(database, spec, 0.5, worker="host-b/1")
    assert expected(database, claimed(database, spec)) is None, "it has taken longer than they did"


def test_a_jobs_own_progress_is_believed_first(database: Database) -> None:
    spec = tiny_train_spec(evaluation=None, epochs=10)
    trained(database, spec, 9.0, worker="host-b/1")
    by_itself = Progress(stage="training", fraction=0.5, seconds_left=77.0)
    assert expected(database, claimed(database, spec, by_itself)) == (77.0, "by its own progress")
    silent = Progress(stage="selection", fraction=0.25)
    left, source = expected(database, claimed(database, spec, silent)) or (0, "")
    assert (left, source) == (pytest.approx(30, abs=5), "by its own progress")
    early = Progress(stage="training", fraction=0.01)
    assert "this host" in (expected(database, claimed(database, spec, early)) or (0, ""))[1]


def test_an_evaluation_takes_as_long_as_others_of_its_architecture(database: Database) -> None:
    weights = train(database, "Measured")
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.1))
    spec = EvaluateSpec(name="x", dataset="digits", architecture="small_cnn", weights=weights, evaluation=evaluation)
    job_id = measure(database, weights, robust=100)
    with database.writing() as session:
        waits = jobs.create(session, spec).id
    assert expected(database, waits) == (2.0, f"as job {job_id} took")
    with database.writing() as session:
        jobs.request_cancel(session, waits)
    assert expected(database, waits) is None


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
