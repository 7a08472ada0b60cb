"""A claimed job is run by a real runner process and becomes rows, or says why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
from sqlalchemy import select, update

from app import jobs
from app.boards import listing, ranking, results, robust_points
from app.boards.certificates import points_of
from app.core.settings import Settings
from app.db.database import Database, database_now
from app.db.tables import FileKind, Job, JobFile
from app.http.service import Service
from app.jobs import job_files, job_log
from app.jobs.broker import announce_relay, clear_relay
from app.maintenance.cleanup import clean
from app.store import ArtifactStore, FolderStore, StoredFile
from gkl.answers import JobKind, JobState
from gkl.data import load_test
from gkl.errors import FailureCode
from gkl.evaluation import verify
from gkl.files import sha256_of
from gkl.models import build_model
from gkl.outcome import Resources
from gkl.run_context import RunContext
from gkl.spec import EvaluateSpec, Evaluation, InnerMaximization, Sgd, ThreatModel, TrainSpec
from gkl.training import train
from tests.cluster import runs_of, until
from tests.databases import either_database
from tests.specs import NO_FILES, endless_train_spec, tiny_train_spec
from worker.presence import problem
from worker.run_directories import remove_left
from worker.tasks import Worker


@pytest.fixture
def worker(settings: Settings, database: Database, store: ArtifactStore) -> Worker:
    changes = {"heartbeat_seconds": 0.3, "stop_grace_seconds": 5.0, "checkpoint_seconds": 0.0}
    quick = settings.model_copy(update=changes)
    return Worker(quick, database, store, name="test", stopping=threading.Event())


def send(database: Database, spec: TrainSpec) -> int:
    with database.writing() as session:
        return jobs.create(session, spec).id


def look(database: Database, job_id: int) -> Job:
    with database.reading() as session:
        return jobs.get(session, job_id)


def log_of(database: Database, job_id: int) -> str:
    with database.reading() as session:
        return job_log.tail(session, job_id, 10_000)


def files(settings: Settings) -> list[Path]:
    """Everything in the data directory but logs, after a cleanup that thinks nothing young."""
    service = Service.from_settings(settings)
    clean(service, young_seconds=0)
    remove_left(settings, service.database, young_seconds=0)
    service.database.close()
    return [p for p in settings.data_dir.rglob("*") if p.is_file() and "logs" not in p.parts and p.name != ".lock"]


def runners() -> list[psutil.Process]:
    return runs_of(os.getpid())


class Background:
    """Runs the worker's next job in a thread, for tests that act on it meanwhile."""

    def __init__(self, worker: Worker) -> None:
        self.thread = threading.Thread(target=worker.run_next)
        self.thread.start()

    def wait(self) -> None:
        self.thread.join(timeout=120)
        assert not self.thread.is_alive()


def test_a_training_becomes_weights_a_model_and_the_evaluation_that_follows(
    worker: Worker, database: Database, store: ArtifactStore, settings: Settings
) -> None:
    assert worker.run_next() is None
    train_id = send(database, tiny_train_spec())
    assert worker.run_next() == train_id
    train_job = look(database, train_id)
    assert train_job.state is JobState.SUCCEEDED, train_job.failure_message
    with database.reading() as session:
        (stored,) = session.scalars(select(JobFile))
        model = results.models_of_jobs(session, [train_id])[train_id]
        epochs = [e.data["epoch"] for e in jobs.events_after(session, train_id, 0) if e.type == "epoch"]
        (follow_up,) = jobs.page(session, kind=JobKind.EVALUATE)
    assert epochs == [1, 2]
    assert (stored.kind, stored.number) == (FileKind.WEIGHTS, 2)
    assert sha256_of(store.path(stored.sha256)) == stored.sha256 == model.weights_sha256
    assert files(settings) == [store.path(stored.sha256)], "no checkpoint and no working file is left"
    assert (follow_up.parent_id, follow_up.spec["weights"]) == (train_id, stored.sha256)
    assert "epoch 2 of 2" in log_of(database, train_id)
    assert train_job.resources is not None
    resources = Resources.model_validate(train_job.resources)
    assert 100e6 < resources.peak_memory_bytes < 4e9
    assert resources.cpu_seconds > 0.01

    assert worker.run_next() == follow_up.id
    with database.reading() as session:
        evaluation = results.evaluation_of_job(session, follow_up.id)
        assert evaluation is not None, look(database, follow_up.id).failure_message
        assert evaluation.certificate_sha256 is not None
        certificate = session.scalars(select(JobFile).where(JobFile.kind == FileKind.CERTIFICATE)).one()
        assert certificate.sha256 == evaluation.certificate_sha256
        assert evaluation.model_id == model.id
        assert [a.attack for a in evaluation.attacks] == ["APGD-CE", "APGD-T", "FAB-T", "Square", "Repair"]
        assert evaluation.attacks[-1].survivors == evaluation.robust_correct
        assert evaluation.manifest["weights_sha256"] == stored.sha256
        (row,) = listing.search(session, ranking.board(session, "digits", "Linf-0.9"), listing.View())
        assert (row.rank, row.entry.name) == (1, "Tiny")


@either_database
def test_a_runner_that_is_killed_gives_a_failed_job_with_a_reason(
    worker: Worker, database: Database, settings: Settings
) -> None:
    job_id = send(database, endless_train_spec())
    running = Background(worker)
    until(lambda: look(database, job_id).progress)
    for process in runners():
        process.kill()
    running.wait()
    job = look(database, job_id)
    assert (job.state, job.failure_code) == (JobState.FAILED, FailureCode.KILLED)
    assert job.failure_message is not None
    assert "out of memory" in job.failure_message
    assert not list((settings.data_dir / "runs").iterdir())


@either_database
def test_a_job_is_cancelled_while_it_runs(worker: Worker, database: Database) -> None:
    job_id = send(database, endless_train_spec())
    running = Background(worker)
    until(lambda: look(database, job_id).progress)
    with database.writing() as session:
        jobs.request_cancel(session, job_id)
    running.wait()
    job = look(database, job_id)
    assert (job.state, job.failure_code) == (JobState.CANCELLED, None)
    assert not runners()


@either_database
def test_a_stopping_worker_hands_its_job_back_and_another_goes_on(
    worker: Worker, database: Database, store: ArtifactStore, settings: Settings, tmp_path: Path
) -> None:
    spec = tiny_train_spec(
        architecture="small_cnn", epochs=12, evaluation=None, inner_maximization=InnerMaximization(num_steps=4)
    )
    job_id = send(database, spec)
    running = Background(worker)

    def checkpoints() -> list[JobFile]:
        with database.reading() as session:
            return list(session.scalars(select(JobFile).order_by(JobFile.number.desc())))

    until(lambda: len(checkpoints()) == 2)
    worker.stopping.set()
    running.wait()
    job = look(database, job_id)
    assert (job.state, job.lost_leases, job.attempt) == (JobState.QUEUED, 0, 1)
    saved = checkpoints()[0].number
    assert worker.run_next() is None, "a stopping worker takes nothing"

    other = Worker(worker.settings, database, store, name="other", stopping=threading.Event())
    assert other.run_next() == job_id
    with database.reading() as session:
        events = jobs.events_after(session, job_id, 0)
        (weights,) = session.scalars(select(JobFile))
    epochs = [e.data["epoch"] for e in events if e.type == "epoch"]
    assert epochs[-1] == 12
    assert saved + 1 in epochs
    assert epochs.count(saved - 1) == 1, "what was saved is not trained again"
    # The same weights as a run that nobody disturbed.
    undisturbed = train(spec, RunContext(directory=tmp_path / "undisturbed", datasets_dir=NO_FILES))
    assert weights.sha256 == undisturbed.manifest.weights_sha256
    assert files(settings) == [store.path(weights.sha256)]


@either_database
def test_an_evaluation_goes_on_elsewhere_from_its_last_finished_part(
    worker: Worker, database: Database, store: ArtifactStore, settings: Settings
) -> None:
    """Its upper bound is on the board meanwhile, and its parts are gone when it has ended."""
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.2), batch_size=40, num_points=40)
    send(database, tiny_train_spec(architecture="tiny_cnn", epochs=20, evaluation=evaluation))
    worker.run_next()
    with database.reading() as session:
        (waiting,) = jobs.page(session, kind=JobKind.EVALUATE)
    spec = EvaluateSpec.model_validate(waiting.spec)
    running = Background(worker)

    def provisional() -> bool:
        with database.reading() as session:
            found = results.evaluation_of_job(session, waiting.id)
            return found is not None and found.is_provisional

    until(provisional, seconds=120)
    worker.stopping.set()
    running.wait()
    assert look(database, waiting.id).state is JobState.QUEUED
    with database.reading() as session:
        parts = job_files.resume_files(session, waiting.id)
        upper = results.evaluation_of_job(session, waiting.id)
        assert upper is not None
    # The checks, clean images, APGD-CE and APGD-T.
    assert len(parts) >= 4
    assert {part.kind for part in parts} == {FileKind.BLOCK}

    other = Worker(worker.settings, database, store, name="other", stopping=threading.Event())
    assert other.run_next() == waiting.id
    job = look(database, waiting.id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2), job.failure_message
    with database.reading() as session:
        final = results.evaluation_of_job(session, waiting.id)
        assert final is not None
        assert job_files.resume_files(session, waiting.id) == []
    assert not final.is_provisional
    assert final.certificate_sha256 is not None
    assert (final.id, final.clean_correct) == (upper.id, upper.clean_correct)
    first_attacks = [(a.attack, a.broken, a.seconds) for a in final.attacks[:2]]
    assert first_attacks == [(a.attack, a.broken, a.seconds) for a in upper.attacks], "they were not run again"
    kept = {store.path(spec.weights), store.path(final.certificate_sha256)}
    assert set(files(settings)) == kept, "no part is left"
    # What a stranger would do with the two files.
    found = verify(store.path(final.certificate_sha256), store.path(spec.weights), datasets_dir=NO_FILES, device="cpu")
    assert (found.holds, found.robust_correct) == (True, final.robust_correct)
    points, _ = points_of(store.path(final.certificate_sha256))
    assert sum(point.broken_by is not None for point in points) == final.clean_correct - (final.robust_correct or 0)
    with database.reading() as session:
        (known,) = robust_points.stored_points(session, [final.certificate_sha256]).values()
    assert known.tolist() == [point.broken_by is None and point.prediction == point.label for point in points]


@either_database
def test_weights_that_were_sent_become_a_row(
    worker: Worker, database: Database, store: ArtifactStore, tmp_path: Path
) -> None:
    """A state dict of torch.save; then one of another network, which fails its job with a sentence."""
    torch.save({"state_dict": build_model("tiny_cnn", "digits").state_dict()}, tmp_path / "model.pt")
    stored = store.put(tmp_path / "model.pt")
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.9), batch_size=360)
    with database.writing() as session:
        job_files.record_upload(session, stored, "torch", "Ada")
        specs = [
            EvaluateSpec(name="Sent", dataset="digits", architecture=name, weights=stored.sha256, evaluation=evaluation)
            for name in ("small_cnn", "tiny_cnn")
        ]
        wrong = jobs.create(session, specs[0]).id
    assert worker.run_next() == wrong
    job = look(database, wrong)
    assert (job.state, job.failure_code) == (JobState.FAILED, FailureCode.INVALID_INPUT)
    assert "choose the architecture it was trained with" in (job.failure_message or "")
    with database.writing() as session:
        right = jobs.create(session, specs[1]).id
    assert worker.run_next() == right
    assert look(database, right).state is JobState.SUCCEEDED, look(database, right).failure_message
    with database.reading() as session:
        (row,) = listing.search(session, ranking.board(session, "digits", "Linf-0.9"), listing.View())
        assert row.entry.model is not None
        assert (row.entry.name, row.entry.loss, row.entry.model.weights_sha256) == ("Sent", None, stored.sha256)
    assert store.path(stored.sha256).exists()
    with database.reading() as session:
        converted = job_files.converted(session, stored.sha256)
        kept = session.scalars(select(JobFile).where(JobFile.kind == FileKind.CONVERTED)).all()
        evaluation_row = results.evaluation_of_job(session, right)
    assert [file.job_id for file in kept] == [wrong], "converted once, though its job failed"
    assert converted is not None
    assert "converting the weights" not in log_of(database, right)
    # The verdict is about the file as it was sent, and holds for it.
    assert evaluation_row is not None
    assert evaluation_row.certificate_sha256 is not None
    found = verify(
        store.path(evaluation_row.certificate_sha256), tmp_path / "model.pt", datasets_dir=NO_FILES, device="cpu"
    )
    assert found.problems == []
    assert converted in {path.name for path in files(worker.settings)}, "the cleanup keeps it"


@either_database
def test_two_networks_in_one_file_are_a_question_and_two_models(
    worker: Worker, database: Database, store: ArtifactStore, tmp_path: Path
) -> None:
    networks = {"state_dict": build_model("tiny_cnn", "digits"), "state_dict_ema": build_model("tiny_cnn", "digits")}
    torch.save({key: network.state_dict() for key, network in networks.items()}, tmp_path / "model.pt")
    stored = store.put(tmp_path / "model.pt")
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.9), batch_size=360)
    keys = (None, "state_dict_ema", "state_dict", "model")
    with database.writing() as session:
        job_files.record_upload(session, stored, "torch", "Ada")
        specs = [
            EvaluateSpec(
                name=str(key),
                dataset="digits",
                architecture="tiny_cnn",
                weights=stored.sha256,
                weights_key=key,
                evaluation=evaluation,
            )
            for key in keys
        ]
        sent = {key: jobs.create(session, spec).id for key, spec in zip(keys, specs, strict=True)}
    ended = {}
    for key in keys:
        assert worker.run_next() == sent[key]
        ended[key] = look(database, sent[key])
    for key, says in (
        (
            None,
            "holds 2 networks that fit the architecture, at 'state_dict', 'state_dict_ema'; choose one with",
        ),
        ("model", "holds no network of this architecture at weights_key 'model'; it holds one at 'state_dict', 'state"),
    ):
        assert ended[key].failure_code is FailureCode.INVALID_INPUT
        assert says in (ended[key].failure_message or "")
    with database.reading() as session:
        rows = listing.search(session, ranking.board(session, "digits", "Linf-0.9"), listing.View())
        models = {row.entry.name: row.entry.model for row in rows}
        assert set(models) == set(networks)
        for key, network in networks.items():
            found = results.evaluation_of_job(session, sent[key])
            assert found is not None
            assert (found.model.weights_key, found.manifest["weights_key"]) == (key, key)
            assert f"the file's network at {key!r} was loaded" in found.manifest["weights_notes"]
            model = models[key]
            assert model is not None
            assert (found.model_id, model.weights_sha256) == (model.id, stored.sha256)
            # The figure is this network's, and the certificate holds for the file as it was sent.
            images = load_test("digits", NO_FILES, 360)
            with torch.no_grad():
                answers = network.eval()(images.images.float()).argmax(1)
            assert int((answers == images.labels).sum()) == found.clean_correct
            assert found.certificate_sha256 is not None
            checked = verify(
                store.path(found.certificate_sha256), tmp_path / "model.pt", datasets_dir=NO_FILES, device="cpu"
            )
            assert checked.problems == []
        kept = session.scalars(select(JobFile).where(JobFile.kind == FileKind.CONVERTED)).all()
    assert len(kept) == 1, "one conversion holds both"


def test_a_worker_that_lost_its_job_stops_the_run_and_keeps_nothing(worker: Worker, database: Database) -> None:
    job_id = send(database, endless_train_spec())
    running = Background(worker)
    until(lambda: look(database, job_id).progress)
    reaped: list[Job] = []
    # Again where the worker's heartbeat came in between.
    while not reaped:
        with database.writing() as session:
            past = database_now(session) - timedelta(seconds=1)
            session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=past))
        reaped = jobs.reap(database, max_lost_leases=3, backoff=timedelta(0))
    with database.writing() as session:
        taken = jobs.claim(session, worker="other", lease=timedelta(seconds=90))
    running.wait()
    assert not runners()
    job = look(database, job_id)
    assert taken is not None
    assert (job.state, job.worker, job.attempt) == (JobState.RUNNING, "other", 2)


@either_database
def test_divergence_is_a_typed_failure(worker: Worker, database: Database) -> None:
    job_id = send(database, tiny_train_spec(architecture="small_cnn", epochs=20, optimizer=Sgd(learning_rate=100.0)))
    assert worker.run_next() == job_id
    job = look(database, job_id)
    assert (job.state, job.failure_code) == (JobState.FAILED, FailureCode.NON_FINITE_LOSS)
    assert job.failure_message is not None
    assert "lower one of them" in job.failure_message


@either_database
def test_weights_that_vanished_fail_the_job_and_not_the_worker(
    worker: Worker, database: Database, store: ArtifactStore
) -> None:
    train_id = send(database, tiny_train_spec())
    worker.run_next()
    with database.reading() as session:
        store.path(session.scalars(select(JobFile.sha256)).one()).unlink()
    job_id = worker.run_next()
    assert job_id is not None
    job = look(database, job_id)
    assert (job.parent_id, job.state, job.failure_code) == (train_id, JobState.FAILED, FailureCode.INVALID_INPUT)


@either_database
def test_a_spec_that_this_version_can_not_run_fails_its_job_alone(worker: Worker, database: Database) -> None:
    """As after an upgrade that renamed an architecture while the job was queued."""
    old, following = send(database, tiny_train_spec()), send(database, tiny_train_spec(evaluation=None))
    with database.writing() as session:
        job = jobs.get(session, old)
        job.spec = job.spec | {"architecture": "renamed"}
    assert worker.run_next() == old
    job = look(database, old)
    assert (job.state, job.failure_code) == (JobState.FAILED, FailureCode.INVALID_INPUT)
    assert job.failure_message is not None
    assert "unknown architecture 'renamed'" in job.failure_message
    assert worker.run_next() == following
    assert look(database, following).state is JobState.SUCCEEDED


def several_epochs() -> TrainSpec:
    quick = InnerMaximization(num_steps=4)
    return tiny_train_spec(architecture="small_cnn", epochs=12, evaluation=None, inner_maximization=quick)


def points(database: Database, job_id: int) -> list[JobFile]:
    """What a training can go on from, the newest first."""
    with database.reading() as session:
        return job_files.resume_files(session, job_id)


def epochs_of(database: Database, job_id: int) -> list[int]:
    """As its runs told of them."""
    with database.reading() as session:
        return [event.data["epoch"] for event in jobs.events_after(session, job_id, 0) if event.type == "epoch"]


def stop_at_two_checkpoints(worker: Worker, database: Database, job_id: int) -> None:
    """Run the job until it has left as many, and hand it back."""
    running = Background(worker)
    until(lambda: len(points(database, job_id)) == 2)
    worker.stopping.set()
    running.wait()
    worker.stopping.clear()


@either_database
def test_an_epoch_that_is_trained_again_replaces_its_checkpoint(
    worker: Worker, database: Database, store: ArtifactStore
) -> None:
    """The newest checkpoint is damaged and the one before is gone: training starts over, and ends well."""
    job_id = send(database, several_epochs())
    stop_at_two_checkpoints(worker, database, job_id)
    newest, before = points(database, job_id)
    store.path(newest.sha256).write_bytes(b"damaged")
    store.path(before.sha256).unlink()
    assert worker.run_next() == job_id
    job = look(database, job_id)
    assert job.state is JobState.SUCCEEDED, job.failure_message
    assert points(database, job_id) == []


@either_database
def test_a_checkpoint_with_one_flipped_bit_is_not_trained_on(
    worker: Worker, database: Database, store: ArtifactStore
) -> None:
    """The run goes on from the one before, says so, and ends with the weights of a run that nothing disturbed."""
    job_id = send(database, several_epochs())
    stop_at_two_checkpoints(worker, database, job_id)
    path = store.path(points(database, job_id)[0].sha256)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    assert worker.run_next() == job_id
    undisturbed = send(database, several_epochs())
    assert worker.run_next() == undisturbed
    with database.reading() as session:
        weights = select(JobFile.sha256).where(
            JobFile.kind == FileKind.WEIGHTS, JobFile.job_id.in_([job_id, undisturbed])
        )
        assert len(set(session.scalars(weights).all())) == 1
        assert "is gone or damaged; it is computed again" in job_log.tail(session, job_id, 100_000)


@either_database
def test_checkpoints_are_kept_at_the_pace_of_the_setting(
    worker: Worker, database: Database, store: ArtifactStore
) -> None:
    """Of epochs that take a fraction of a second none, but for one at a drain, and one at the end."""
    job_id = send(database, several_epochs())
    slow = with_settings(worker, checkpoint_seconds=3600.0)
    running = Background(slow)
    until(lambda: len(epochs_of(database, job_id)) >= 2)
    assert points(database, job_id) == []
    slow.stopping.set()
    running.wait()
    slow.stopping.clear()
    (point,) = points(database, job_id)
    assert point.number >= 2
    told = len(epochs_of(database, job_id))
    assert slow.run_next() == job_id
    assert look(database, job_id).state is JobState.SUCCEEDED
    numbers = epochs_of(database, job_id)
    assert numbers == sorted(set(numbers)), "none was trained again"
    assert len(numbers) > told


class AgedStore(FolderStore):
    """In which everything is as old as a training's checkpoints would be that makes them by the minute."""

    def put(self, source: Path) -> StoredFile:
        stored = super().put(source)
        long_ago = time.time() - 3600
        os.utime(self.path(stored.sha256), (long_ago, long_ago))
        return stored


@either_database
def test_superseded_checkpoints_go_at_once(worker: Worker, database: Database, settings: Settings) -> None:
    """Without a cleanup. The last two go with one, as what an ended job needed. Without a relay none goes."""
    aged = replace(worker, store=AgedStore(settings.data_dir))
    kept = []
    for has_relay in (True, False):
        (announce_relay if has_relay else clear_relay)(settings)
        # Another seed: the same checkpoints would be stored once.
        job_id = send(database, several_epochs().model_copy(update={"seed": int(has_relay)}))
        assert aged.run_next() == job_id
        assert look(database, job_id).state is JobState.SUCCEEDED
        kept.append(len([path for path in (settings.data_dir / "artifacts").rglob("*") if len(path.name) == 64]))
    assert 1 <= kept[0] <= 3, "weights and two checkpoints"
    assert kept[1] > kept[0] + 5


def order_to(directory: Path) -> dict[str, object]:
    return {
        "spec": endless_train_spec().model_dump(mode="json"),
        "shard_index": None,
        "directory": str(directory),
        "datasets_dir": str(NO_FILES),
        "models_dir": str(NO_FILES),
        "weights": None,
        "converted": None,
        "checkpoint_seconds": 0.0,
    }


def test_a_runner_whose_supervisor_is_gone_ends(tmp_path: Path) -> None:
    """The pipe of its orders is its lifeline."""
    order = order_to(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.runner"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        assert "progress" in process.stdout.readline()
        process.stdin.close()
        process.wait(timeout=60)
    assert process.returncode == 1


def test_a_runner_stops_between_two_steps_on_sigterm(tmp_path: Path) -> None:
    order = order_to(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "worker.runner"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        process.stdout.readline()
        os.kill(process.pid, signal.SIGTERM)
        assert process.stdout.readlines()[-1] == '{"type":"interrupted"}\n'
        process.wait(timeout=60)
    assert process.returncode == 0
    assert not list(tmp_path.glob(".*")), "nothing half-written"


def with_settings(worker: Worker, **changes: float) -> Worker:
    return replace(worker, settings=worker.settings.model_copy(update=changes))


def change_at_once(worker: Worker, **changes: float) -> None:
    """Other limits for the run that is under way: however long it took to start on a busy machine, that was no test."""
    vars(worker.settings).update(changes)


@either_database
def test_a_run_that_shows_no_sign_of_life_is_stopped_and_says_so(worker: Worker, database: Database) -> None:
    job_id = send(database, endless_train_spec())
    running = Background(worker)
    until(lambda: look(database, job_id).progress)
    for process in runners():
        process.suspend()
    change_at_once(worker, no_progress_seconds=3.0, stop_grace_seconds=1.0)
    running.wait()
    job = look(database, job_id)
    assert (job.state, job.failure_code) == (JobState.FAILED, FailureCode.NO_PROGRESS)
    assert "no sign of life for 3 s" in (job.failure_message or "")
    assert not runners()


@either_database
def test_a_job_that_runs_too_long_is_stopped_and_a_retry_goes_on(
    worker: Worker, database: Database, settings: Settings
) -> None:
    """The time of earlier attempts counts; a retry begins anew, from the last checkpoint."""
    job_id = send(database, endless_train_spec())
    with database.writing() as session:
        session.execute(update(Job).values(run_seconds=1000.0))
    before, started = worker.settings.max_run_seconds, time.monotonic()
    running = Background(worker)
    until(lambda: look(database, job_id).progress)
    limit = 1000 + time.monotonic() - started + 1
    change_at_once(worker, max_run_seconds=limit)
    running.wait()
    seconds = time.monotonic() - started
    change_at_once(worker, max_run_seconds=before)
    job = look(database, job_id)
    assert (job.state, job.failure_code) == (JobState.FAILED, FailureCode.TIMED_OUT)
    assert limit <= job.run_seconds < 1000 + seconds + 1, "it was stopped at the limit, and took its time to save"
    with database.writing() as session:
        assert job_files.resume_files(session, job_id), "what it had is saved when it is stopped"
        jobs.retry(session, job_id)
    running = Background(worker)
    until(lambda: look(database, job_id).progress)
    with database.writing() as session:
        jobs.request_cancel(session, job_id)
    running.wait()
    assert "resumed after epoch" in log_of(database, job_id)


class SlowStore(FolderStore):
    """On a disk that takes longer for a file than a lease lasts."""

    def put(self, source: Path) -> StoredFile:
        time.sleep(4)
        return super().put(source)


@either_database
def test_a_slow_disk_costs_no_lease(worker: Worker, database: Database, settings: Settings) -> None:
    """It is renewed while the supervisor waits."""
    slow = with_settings(worker, lease_seconds=3.0, heartbeat_seconds=0.3)
    slow = replace(slow, store=SlowStore(settings.data_dir))
    job_id = send(database, tiny_train_spec(epochs=1, architecture="tiny_cnn", evaluation=None))
    running = Background(slow)
    while running.thread.is_alive():
        assert jobs.reap(database, max_lost_leases=3, backoff=timedelta(0)) == []
        time.sleep(0.2)
    job = look(database, job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1), job.failure_message


@either_database
def test_a_cancelled_training_that_ended_well_is_followed_by_nothing(worker: Worker, database: Database) -> None:
    """The wish comes in the moment between its last step and its last transaction."""
    job_id = send(database, tiny_train_spec(epochs=1, architecture="tiny_cnn"))

    class Late(FolderStore):
        def put(self, source: Path) -> StoredFile:
            if "weights" in source.name:
                with database.writing() as session:
                    jobs.request_cancel(session, job_id)
            return super().put(source)

    replace(worker, store=Late(worker.settings.data_dir)).run_next()
    with database.reading() as session:
        job = jobs.get(session, job_id)
        assert (job.state, job.followers) == (JobState.SUCCEEDED, [])


@either_database
def test_a_worker_without_room_lets_jobs_wait(worker: Worker, database: Database) -> None:
    job_id = send(database, tiny_train_spec())
    assert with_settings(worker, min_free_bytes=2**62).run_next() is None
    assert look(database, job_id).state is JobState.QUEUED
    assert "make some, and it goes on" in (
        problem(worker.settings.model_copy(update={"min_free_bytes": 2**62}), worker.store) or ""
    )


@either_database
def test_a_worker_goes_on_until_nothing_is_due(worker: Worker, database: Database) -> None:
    sent = [send(database, tiny_train_spec(epochs=1, architecture="tiny_cnn", evaluation=None, seed=s)) for s in (1, 2)]
    worker.run_all_due()
    assert [look(database, job_id).state for job_id in sent] == [JobState.SUCCEEDED] * 2
