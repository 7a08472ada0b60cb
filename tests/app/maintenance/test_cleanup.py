"""What goes by itself and what stays, on both databases."""

from __future__ import annotations

import hashlib
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from app import jobs
from app.core.errors import NotFound
from app.db.database import Database, database_now
from app.db.tables import FileKind, IdempotencyKey, Job, JobEvent, JobFile, Submitter, WorkerRow
from app.http.service import Service
from app.jobs import job_files, job_log, workers
from app.maintenance.cleanup import clean
from gkl.answers import JobState
from gkl.errors import FailureCode
from gkl.outcome import EpochFinished
from gkl.recipes.adversarial import digits
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel

LEASE = timedelta(seconds=90)


def put(service: Service, content: bytes, tmp_path: Path) -> str:
    (tmp_path / "source").write_bytes(content)
    sha256 = service.store.put(tmp_path / "source").sha256
    grow_old(service.store.path(sha256))
    return sha256


def grow_old(path: Path) -> None:
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))


def run(service: Service, tmp_path: Path, *, ends: JobState, days_ago: float) -> int:
    """A training that saved a checkpoint, an epoch and a log, and ended."""
    database = service.database
    with database.writing() as session:
        job = jobs.create(session, digits())
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        epoch = EpochFinished(
            epoch=1,
            epochs=2,
            seconds=1,
            metrics={
                "loss": 1,
                "clean_accuracy": 0,
                "adversarial_accuracy": 0,
                "epsilon": 0.1,
                "learning_rate": 0.1,
            },
        )
        jobs.record_event(session, claim, epoch)
        for kind in (FileKind.RESUME, FileKind.WEIGHTS):
            content = f"{kind} of {job.id}".encode()
            (tmp_path / "source").write_bytes(content)
            stored = service.store.put(tmp_path / "source")
            grow_old(service.store.path(stored.sha256))
            job_files.add_file(session, job.id, kind, number=1, file="f", stored=stored)
        if ends is JobState.SUCCEEDED:
            jobs.succeed(session, claim)
        else:
            jobs.fail(session, claim, FailureCode.TIMED_OUT, "it took too long")
        ended = database_now(session) - timedelta(days=days_ago)
        session.execute(update(Job).where(Job.id == job.id).values(finished_at=ended))
        job_log.append(session, job.id, b"a line\n", max_bytes=1000)
    return job.id


def left(database: Database, job_id: int) -> tuple[set[FileKind], set[str]]:
    with database.reading() as session:
        kinds = set(session.scalars(select(JobFile.kind).where(JobFile.job_id == job_id)))
        events = set(session.scalars(select(JobEvent.type).where(JobEvent.job_id == job_id)))
    return kinds, events


def test_each_thing_goes_in_its_time(service: Service, tmp_path: Path) -> None:
    """Checkpoints of failed jobs after 7 days, logs and events after 90; results never."""
    fresh = run(service, tmp_path, ends=JobState.FAILED, days_ago=6)
    week = run(service, tmp_path, ends=JobState.FAILED, days_ago=8)
    old = run(service, tmp_path, ends=JobState.FAILED, days_ago=91)
    good = run(service, tmp_path, ends=JobState.SUCCEEDED, days_ago=91)
    clean(service)
    everything = {FileKind.RESUME, FileKind.WEIGHTS}
    assert left(service.database, fresh) == (everything, {"state", "epoch"})
    assert left(service.database, week) == ({FileKind.WEIGHTS}, {"state", "epoch"})
    assert left(service.database, old) == ({FileKind.WEIGHTS}, {"state"})
    assert left(service.database, good) == (everything, {"state", "epoch"}), "its curve belongs to its model"
    with service.database.reading() as session:
        logs = [job_log.tail(session, job_id, 100) for job_id in (fresh, week, old, good)]
    assert logs == ["a line\n", "a line\n", "", ""]
    for job_id, is_kept in ((fresh, True), (week, False)):
        sha256 = hashlib.sha256(f"resume of {job_id}".encode()).hexdigest()
        if is_kept:
            assert service.store.path(sha256).exists()
        else:
            with pytest.raises(NotFound):
                service.store.path(sha256)


def test_parts_of_good_shards_go_with_their_evaluation(service: Service, tmp_path: Path) -> None:
    weights = put(service, b"weights", tmp_path)
    with service.database.writing() as session:
        stored = service.store.put(tmp_path / "source")
        job_files.record_upload(session, stored, "safetensors", "Ada")
        evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.2), batch_size=180, shards=2)
        spec = EvaluateSpec(
            name="x", dataset="digits", architecture="small_cnn", weights=weights, evaluation=evaluation
        )
        whole = jobs.create(session, spec)
        first = jobs.claim(session, worker="a", lease=LEASE)
        second = jobs.claim(session, worker="b", lease=LEASE)
        assert first is not None
        assert second is not None
        job_files.add_file(session, first.job_id, FileKind.BLOCK, number=0, file="block", stored=stored)
        jobs.succeed(session, first)
        jobs.fail(session, second, FailureCode.OUT_OF_MEMORY, "too much")
    clean(service)
    with service.database.reading() as session:
        assert len(job_files.resume_files(session, whole.id)) == 1, "a retry goes on from it"
    with service.database.writing() as session:
        session.execute(update(Job).values(finished_at=database_now(session) - timedelta(days=8)))
    clean(service)
    with service.database.reading() as session:
        assert job_files.resume_files(session, whole.id) == []
    assert service.store.path(weights).exists()


def test_files_of_nobody_go(service: Service, tmp_path: Path) -> None:
    orphan = put(service, b"stored, then killed before its row", tmp_path)
    clean(service)
    with pytest.raises(NotFound):
        service.store.path(orphan)


def test_submitters_who_wait_for_nothing_are_forgotten(service: Service) -> None:
    with service.database.writing() as session:
        for name in ("idle", "served", "waiting", "lately"):
            jobs.create(session, digits(), submitter=name)
        jobs.request_cancel(session, 1)
        for job_id in (2, 4):
            jobs.request_cancel(session, job_id)
        long_ago = database_now(session) - timedelta(days=2)
        session.execute(update(Submitter).where(Submitter.name == "served").values(last_claimed_at=long_ago))
        session.execute(
            update(Submitter).where(Submitter.name == "lately").values(last_claimed_at=database_now(session))
        )
    clean(service)
    with service.database.writing() as session:
        assert sorted(session.scalars(select(Submitter.name))) == ["lately", "waiting"]
        # As if it had been forgotten while its job was being sent.
        session.execute(delete(Submitter).where(Submitter.name == "waiting"))
        assert jobs.claim(session, worker="w", lease=LEASE) is None
        jobs.register_all_submitters(session)
        taken = jobs.claim(session, worker="w", lease=LEASE)
        assert taken is not None
        assert taken.job_id == 3


def test_lost_workers_and_old_keys_are_forgotten(service: Service) -> None:
    remember = timedelta(hours=service.settings.idempotency_hours)
    with service.database.writing() as session:
        for name in ("here", "gone"):
            workers.record_heartbeat(session, name, host="h", device="CPU", is_draining=False)
        long_ago = database_now(session) - timedelta(days=2)
        session.execute(update(WorkerRow).where(WorkerRow.name == "gone").values(heard_at=long_ago))
    jobs.submit(service.database, digits(), key="old", remember=remember)
    with service.database.writing() as session:
        session.execute(update(IdempotencyKey).values(created_at=database_now(session) - timedelta(days=2)))
    new = jobs.submit(service.database, digits(), key="new", remember=timedelta(days=10))
    clean(service)
    with service.database.reading() as session:
        assert session.scalars(select(WorkerRow.name)).all() == ["here"]
        assert session.scalars(select(IdempotencyKey.job_id)).all() == [new.id]
