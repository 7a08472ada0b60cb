"""What a deployment survives: every process real, killed, frozen or cut off while jobs run."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from sqlalchemy import func, select

from app import jobs
from app.boards import results
from app.db.tables import Evaluation, FileKind, JobFile, Model
from app.jobs import job_files
from app.jobs.broker import make_celery, publisher
from gkl.answers import JobState
from gkl.client import Client
from gkl.errors import FailureCode
from gkl.spec import EvaluateSpec, InnerMaximization, ThreatModel, TrainSpec
from gkl.spec import Evaluation as EvaluationSpec
from tests.cluster import Cluster, PostgresServer, compile_clock, python_time, until
from tests.databases import postgresql_only
from tests.specs import NO_FILES, tiny_train_spec


@pytest.fixture
def make_cluster(database_url: str, tmp_path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def make(**changes: Any) -> Cluster:
            return stack.enter_context(Cluster(tmp_path, database_url, **changes))

        yield make


@pytest.fixture
def cluster(make_cluster: Any) -> Cluster:
    made: Cluster = make_cluster()
    return made


def training(**changes: Any) -> TrainSpec:
    """A few seconds long, saved several times a second."""
    quick = {
        "architecture": "tiny_cnn",
        "epochs": 16,
        "evaluation": None,
        "inner_maximization": InnerMaximization(num_steps=2),
    }
    return tiny_train_spec(**quick | changes)


def attacks(blocks: int, **changes: Any) -> EvaluationSpec:
    """Some seconds of gradients."""
    attacks: Any = ("apgd-ce", "apgd-dlr")
    quick = {"protocol": "custom", "attacks": attacks, "threat_model": ThreatModel(epsilon=0.1)}
    return EvaluationSpec(**quick | {"batch_size": 20, "num_points": 20 * blocks} | changes)


def weights_of(cluster: Cluster, job_id: int) -> str:
    with cluster.database.reading() as session:
        return session.scalars(
            select(JobFile.sha256).where(JobFile.job_id == job_id, JobFile.kind == FileKind.WEIGHTS)
        ).one()


@cache
def _undisturbed(spec_json: str) -> str:
    from gkl.run_context import RunContext
    from gkl.training import train

    with tempfile.TemporaryDirectory() as directory:
        spec = TrainSpec.model_validate_json(spec_json)
        run = train(spec, RunContext(directory=Path(directory), datasets_dir=NO_FILES, device="cpu"))
    return run.manifest.weights_sha256


def undisturbed(spec: TrainSpec) -> str:
    """The weights of a run that nobody disturbs."""
    return _undisturbed(spec.model_dump_json())


def test_a_killed_worker_costs_an_attempt_and_no_epoch(cluster: Cluster) -> None:
    cluster.start("relay", "first")
    spec = training()
    job_id = cluster.send(spec)
    until(lambda: cluster.saved(job_id))
    (runner,) = cluster.runners("first")
    cluster.kill("first")
    until(lambda: not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE)
    cluster.start("second")
    job = cluster.wait_for(job_id)
    assert (job.attempt, job.lost_leases) == (2, 1)
    assert job.worker == cluster.name_of("second")
    assert cluster.history(job_id) == ["queued", "running", "queued", "running", "succeeded"]
    with cluster.database.reading() as session:
        epochs = [e.data["epoch"] for e in jobs.events_after(session, job_id, 0) if e.type == "epoch"]
    assert epochs[-1] == spec.epochs
    assert epochs.count(1) == 1, "what was saved is not trained again"
    assert weights_of(cluster, job_id) == undisturbed(spec)


@postgresql_only
@pytest.mark.long
def test_sigterm_in_training_and_in_evaluation_is_free(cluster: Cluster) -> None:
    """Three workers, one after the other, each told to stop in the middle; the result is that of one."""
    evaluation = attacks(blocks=3)
    cluster.start("relay", "first")
    job_id = cluster.send(training(evaluation=evaluation))
    until(lambda: cluster.saved(job_id))
    assert cluster.stop("first") == 0
    assert cluster.job(job_id).state is JobState.QUEUED
    cluster.start("second")
    trained = cluster.wait_for(job_id)
    assert (trained.attempt, trained.lost_leases) == (2, 0)
    (follower,) = trained.followers
    until(lambda: cluster.saved(follower.id) >= 3)
    assert cluster.stop("second") == 0
    parts = cluster.saved(follower.id)
    assert parts >= 3
    cluster.start("third")
    evaluated = cluster.wait_for(follower.id)
    assert (evaluated.attempt, evaluated.lost_leases) == (2, 0)
    with cluster.database.reading() as session:
        verdict = results.evaluation_of_job(session, follower.id)
        assert verdict is not None
    alone = cluster.send(EvaluateSpec.model_validate(follower.spec))
    cluster.wait_for(alone)
    with cluster.database.reading() as session:
        other = results.evaluation_of_job(session, alone)
        assert other is not None
    assert outcome(verdict) == outcome(other)


def outcome(found: Evaluation) -> Any:
    return found.clean_correct, found.robust_correct, [(a.attack, a.points, a.broken) for a in found.attacks]


@postgresql_only
def test_a_killed_api_disturbs_no_job_and_its_clients_go_on(cluster: Cluster) -> None:
    cluster.start("api", "relay", "worker")
    with Client(cluster.url) as client:
        job = client.submit(training())
        states = []
        for event in client.events(job.id):
            if event.type == "state":
                states.append(event.data["state"])
            if event.type == "epoch" and event.data["epoch"] == 3:
                cluster.kill("api")
                cluster.start("api")
        assert states == ["queued", "running", "succeeded"], "each once: the stream went on where it was cut off"
        assert client.job(job.id).attempt == 1


@postgresql_only
@pytest.mark.parametrize("seconds", [12, pytest.param(60, marks=pytest.mark.long)])
def test_a_broker_that_is_away_delays_and_loses_nothing(make_cluster: Any, seconds: int) -> None:
    """Without the workers' own looking for work: outbox and relay alone bring the message.

    The shorter time is more than what a sender waits before it tries again.
    """
    cluster: Cluster = make_cluster(poll_seconds=3600.0)
    cluster.start("api", "relay", "worker")
    with Client(cluster.url) as client:
        running = client.submit(training(epochs=100)).id
        until(lambda: cluster.job(running).progress)
        cluster.broker.stop()
        away_since = time.monotonic()
        started = time.monotonic()
        sent = [client.submit(training(epochs=1, seed=seed)).id for seed in range(3)]
        assert time.monotonic() - started < 15, "who sends does not wait for the broker"
        assert "broker" in str(httpx2.get(f"{cluster.url}/readyz").json()["parts"])
        cluster.wait_for(running)
        time.sleep(max(0.0, seconds - (time.monotonic() - away_since)))
        cluster.broker.start()
        late = client.submit(training(epochs=1, seed=7)).id
    for job_id in (*sent, late):
        job = cluster.wait_for(job_id)
        assert job.attempt == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_needs_neither_broker_nor_relay_to_find_work(cluster: Cluster) -> None:
    cluster.broker.stop()
    cluster.start("worker")
    assert cluster.wait_for(cluster.send(training(epochs=1))).attempt == 1
    assert cluster.stop("worker") == 0, "it stops in order while its broker is away"


@pytest.mark.long
def test_a_database_that_is_restarted_delays_and_loses_nothing(own_postgres: PostgresServer, tmp_path: Path) -> None:
    with Cluster(tmp_path, own_postgres.create("restarted", template="template")) as cluster:
        _restarted(cluster, own_postgres)


def _restarted(cluster: Cluster, postgres: PostgresServer) -> None:
    cluster.start("api", "relay", "worker")
    spec = training(epochs=50)
    with Client(cluster.url) as client:
        job_id = client.submit(spec).id
        until(lambda: cluster.saved(job_id))
        postgres.stop()
        away = httpx2.get(f"{cluster.url}/api/v1/jobs/{job_id}")
        assert (away.status_code, away.json()["code"]) == (503, "database_away")
        time.sleep(cluster.settings.lease_seconds + 2)
        postgres.start()
        until(lambda: httpx2.get(f"{cluster.url}/readyz").status_code == 200)
        job = cluster.wait_for(job_id)
        assert client.job(job_id).state is JobState.SUCCEEDED
    assert (job.attempt, job.lost_leases) == (1, 0), "nobody could take it, so the worker went on"
    assert weights_of(cluster, job_id) == undisturbed(spec)


@postgresql_only
def test_messages_that_come_twice_or_late_and_racing_workers_run_each_job_once(cluster: Cluster) -> None:
    publish = publisher(make_celery(cluster.settings))
    specs = [training(epochs=1, seed=seed) for seed in range(4)]
    sent = [cluster.send(spec) for spec in specs]
    for job_id in sent * 3:
        publish(job_id)
    cluster.start("relay", "first", "second")
    took = {cluster.wait_for(job_id).worker for job_id in sent}
    assert took == {cluster.name_of("first"), cluster.name_of("second")}
    for job_id in sent:
        publish(job_id)
    last = cluster.send(training(epochs=1, seed=99))
    cluster.wait_for(last)
    assert [cluster.job(job_id).attempt for job_id in sent] == [1] * 4
    with cluster.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Model)) == 5


# That a stale attempt writes nothing is tried on both by the tests of jobs.
@postgresql_only
@pytest.mark.long
def test_a_worker_that_was_frozen_past_its_lease_is_refused(cluster: Cluster) -> None:
    cluster.start("relay", "frozen")
    spec = training(epochs=32)
    job_id = cluster.send(spec)
    until(lambda: cluster.saved(job_id))
    frozen = cluster.name_of("frozen")
    cluster.freeze("frozen")
    cluster.wait_for(job_id, JobState.QUEUED)
    cluster.start("second")
    job = cluster.wait_for(job_id)
    assert (job.attempt, job.worker) == (2, cluster.name_of("second"))
    files = cluster.saved(job_id)
    # Its run has gone on meanwhile, perhaps to its end: what it reports is refused, and it works on.
    cluster.signal("frozen", signal.SIGCONT)
    until(lambda: "was taken from this worker" in cluster.log("frozen").read_text())
    assert (cluster.job(job_id).worker, cluster.saved(job_id)) == (job.worker, files)
    assert cluster.history(job_id).count("succeeded") == 1
    with cluster.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Model)) == 1
    assert cluster.stop("second") == 0
    assert weights_of(cluster, job_id) == undisturbed(spec)
    assert cluster.wait_for(cluster.send(training(epochs=1))).worker == frozen


@pytest.mark.long
@postgresql_only
def test_shards_give_the_verdict_of_one_and_a_lost_one_is_run_again_alone(cluster: Cluster) -> None:
    cluster.start("relay", "first")
    evaluation = attacks(blocks=6)
    train_id = cluster.send(training(evaluation=evaluation))
    (whole,) = cluster.wait_for(train_id).followers
    cluster.wait_for(whole.id)
    spec = EvaluateSpec.model_validate(whole.spec)
    sharded = cluster.send(spec.model_copy(update={"evaluation": evaluation.model_copy(update={"shards": 3})}))
    shards = [shard.id for shard in cluster.job(sharded).shards]
    assert len(shards) == 3
    until(lambda: cluster.saved(sharded) >= 4)
    assert cluster.job(sharded).state is JobState.QUEUED
    lost = next(job_id for job_id in shards if cluster.job(job_id).state is JobState.RUNNING)
    cluster.start("second")
    cluster.kill("first")
    job = cluster.wait_for(sharded)
    assert job.attempt == 1
    attempts = {job_id: cluster.job(job_id).attempt for job_id in shards}
    assert attempts == {job_id: 2 if job_id == lost else 1 for job_id in shards}
    with cluster.database.reading() as session:
        one = results.evaluation_of_job(session, whole.id)
        other = results.evaluation_of_job(session, sharded)
        assert one is not None
        assert other is not None
        assert outcome(one) == outcome(other)
        assert job_files.resume_files(session, sharded) == [], "the parts are put together and gone"
        events = [e.type for e in jobs.events_after(session, sharded, 0)]
    assert events.count("attack") == 2


@postgresql_only
def test_clocks_that_are_off_by_ten_minutes_change_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """Leases are judged by the database's clock."""
    library = str(compile_clock(tmp_path))

    def shifted(seconds: int) -> dict[str, str]:
        return {"LD_PRELOAD": library, "CLOCK_SHIFT_SECONDS": str(seconds)}

    assert python_time(shifted(600)) - time.time() == pytest.approx(600, abs=10)
    cluster.start("relay", environment=shifted(300))
    cluster.start("fast", environment=shifted(600))
    cluster.start("slow", environment=shifted(-600))
    sent = [cluster.send(training(seed=seed)) for seed in range(2)]
    ended = [cluster.wait_for(job_id) for job_id in sent]
    assert {job.worker for job in ended} == {cluster.name_of("fast"), cluster.name_of("slow")}
    for job in ended:
        assert (job.attempt, job.lost_leases) == (1, 0)
        assert job.finished_at is not None
        assert job.started_at is not None
        assert abs(job.finished_at.timestamp() - time.time()) < 120
        assert job.run_seconds == pytest.approx((job.finished_at - job.started_at).total_seconds(), abs=60)


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], check=False).returncode != 0,
    reason="needs a mount namespace for a disk of its own",
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_disk_that_fills_up_while_checkpointing_is_told_and_harms_nothing(cluster: Cluster) -> None:
    """On a real, tiny disk, which is then made larger: the retry goes on from what was saved before."""
    data_dir = cluster.settings.data_dir
    (data_dir / "logs").mkdir()
    environment = os.environ | cluster.settings.environment() | {"OMP_NUM_THREADS": "1"}
    command = f"mount -t tmpfs -o size=700k none {data_dir} && exec {shlex.quote(sys.executable)} -m app.cli worker"
    with (data_dir.parent / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        spec = training(architecture="tiny_cnn")
        job_id = cluster.send(spec)
        # Something else takes the rest of the disk once a checkpoint is there.
        until(lambda: cluster.saved(job_id))
        inside = ["nsenter", "--user", "--mount", "--preserve-credentials", "-t", str(worker.pid)]
        fill = ["dd", "if=/dev/zero", f"of={data_dir}/other", "bs=1k"]
        subprocess.run([*inside, *fill], check=False, capture_output=True)
        job = cluster.wait_for(job_id, JobState.FAILED)
        assert job.failure_code is FailureCode.NO_SPACE_LEFT, job.failure_message
        assert "space" in (job.failure_message or "") or "full" in (job.failure_message or "")
        assert cluster.saved(job_id) >= 1
        subprocess.run([*inside, "rm", f"{data_dir}/other"], check=True)
        subprocess.run([*inside, "mount", "-o", "remount,size=50m", str(data_dir)], check=True)
        with cluster.database.writing() as session:
            jobs.retry(session, job_id)
        cluster.wait_for(job_id)
        with cluster.database.reading() as session:
            epochs = [e.data["epoch"] for e in jobs.events_after(session, job_id, 0) if e.type == "epoch"]
        assert epochs.count(1) == 1, "it went on from its checkpoint"
    finally:
        worker.terminate()
        worker.wait(timeout=60)
