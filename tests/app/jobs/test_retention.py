"""What is kept of jobs and for how long, what their owners may remove, and what `gklbench storage` tells of it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from rich.console import Console
from sqlalchemy import select, update
from typer.testing import CliRunner

from app import jobs
from app.accounts import quotas, tokens
from app.accounts.audit import COMMAND_LINE
from app.boards import ranking, strongest_certificates
from app.cli.main import cli
from app.core.errors import TooLarge, TooMany
from app.core.settings import Settings
from app.db.database import Database, database_now
from app.db.tables import UNFINISHED, ExternalAttack, FileKind, Job, JobEvent, JobFile, Model
from app.evidence import external
from app.http.service import Service
from app.jobs import job_files
from app.maintenance import storage
from app.maintenance.cleanup import clean
from app.store import StoredFile
from gkl.answers import JobState, Scope
from gkl.errors import FailureCode
from gkl.spec import EvaluateSpec
from tests.app.boards.test_results import LEASE, measure, sha, train
from tests.app.routes.test_api import assert_problem
from tests.databases import either_database
from tests.specs import tiny_train_spec
from tests.tokens import bearer, token_of


def measuring(weights: str, **changes: object) -> EvaluateSpec:
    evaluation = {"threat_model": {"epsilon": 0.2}} | changes
    spec = {"name": "x", "dataset": "digits", "architecture": "small_cnn", "weights": weights, "evaluation": evaluation}
    return EvaluateSpec.model_validate(spec)


def age(database: Database, days: float) -> None:
    """All jobs that have ended, by so much."""
    with database.writing() as session:
        ended = database_now(session) - timedelta(days=days)
        session.execute(update(Job).where(Job.finished_at.is_not(None)).values(finished_at=ended))


def failed(database: Database, submitter: str = "Ada") -> int:
    """With a checkpoint of 10 bytes."""
    with database.writing() as session:
        jobs.create(session, tiny_train_spec(), submitter=submitter)
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        stored = StoredFile(sha(f"checkpoint of {claim.job_id}"), 10)
        job_files.add_file(session, claim.job_id, FileKind.RESUME, number=1, file="f", stored=stored)
        jobs.fail(session, claim, FailureCode.TIMED_OUT, "it took too long")
        return claim.job_id


def numbers(database: Database) -> set[int]:
    with database.reading() as session:
        return set(session.scalars(select(Job.id)))


def kept(database: Database, sha256: str) -> bool:
    with database.reading() as session:
        return sha256 in job_files.named_hashes(session, [sha256])


def test_weights_that_stand_on_no_board_go_after_a_year(service: Service) -> None:
    database = service.database
    ranked, unmeasured, partial = (train(database, name) for name in ("Ranked", "Unmeasured", "Partial"))
    measure(database, ranked, robust=100)
    measure(database, partial, robust=10, points=50, clean=50)
    age(database, 364)
    clean(service)
    assert all(kept(database, weights) for weights in (ranked, unmeasured, partial))
    age(database, 366)
    clean(service)
    assert [kept(database, weights) for weights in (ranked, unmeasured, partial)] == [True, False, False]
    with database.reading() as session:
        assert sorted(session.scalars(select(Model.name))) == ["Partial", "Ranked"], "what was measured is still told"
    spec = measuring(partial)
    with pytest.raises(Exception, match="no weights with sha256"), database.writing() as session:
        jobs.create(session, spec)


@either_database
def test_many_at_once_go_in_several_rounds(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement names only so many."""
    monkeypatch.setattr("app.jobs.retention._AT_ONCE", 2)
    database = service.database
    hashes = [train(database, f"Unmeasured {number}") for number in range(3)]
    age(database, 366)
    clean(service)
    assert sum(kept(database, weights) for weights in hashes) == 1
    clean(service)
    assert not any(kept(database, weights) for weights in hashes)


def test_a_job_that_measures_them_keeps_them(service: Service) -> None:
    database = service.database
    weights = train(database, "Slow")
    spec = measuring(weights)
    with database.writing() as session:
        number = jobs.create(session, spec).id
    age(database, 400)
    clean(service)
    assert kept(database, weights)
    with database.writing() as session:
        jobs.request_cancel(session, number)
    clean(service)
    assert not kept(database, weights)


def test_jobs_without_a_result_go_and_others_stay(service: Service) -> None:
    database = service.database
    weights = train(database, "Ranked")
    result = measure(database, weights, robust=100)
    trained = min(numbers(database))
    bad = failed(database)
    age(database, 729)
    clean(service)
    assert numbers(database) == {trained, result, bad}
    age(database, 731)
    clean(service)
    assert numbers(database) == {trained, result}
    with database.reading() as session:
        assert session.scalars(select(JobEvent.id)).all() == [], "of their course nothing is told any more"
        assert job_files.saved_since(session, bad, database_now(session) - timedelta(days=9999)) is False


def test_a_training_goes_in_steps_when_nobody_measured_it(service: Service) -> None:
    database = service.database
    train(database, "Unmeasured")
    age(database, 731)
    clean(service)
    assert numbers(database) == set()
    with database.reading() as session:
        assert session.scalars(select(Model.id)).all() == []


def attack(database: Database, entry: int, number: int, robust: int) -> None:
    """A check that has merged some examples."""
    stored = StoredFile(sha(f"merged {number}"), 100)
    with database.writing() as session:
        job = external.create(session, entry, StoredFile(sha(f"examples {number}"), 5), name="x", submitter="Ada")
        claim = jobs.claim(session, worker="w", lease=LEASE)
        assert claim is not None
        jobs.succeed(session, claim)
        job_files.add_file(session, job.id, FileKind.CERTIFICATE, number=0, file="c", stored=stored)
        job_files.forget_examples(session, job.id)
        values = {"examples": 5, "broken": 5, "robust_correct": robust, "certificate_sha256": stored.sha256}
        session.execute(update(ExternalAttack).where(ExternalAttack.job_id == job.id).values(**values))


def test_of_merged_certificates_the_last_stays(service: Service) -> None:
    database = service.database
    weights = train(database, "Attacked")
    with database.writing() as session:
        job_files.record_upload(session, StoredFile(weights, 10), "safetensors", "Ada")
    measure(database, weights, robust=100, certificate_sha256=sha("own"))
    for number, robust in enumerate((90, 80, 70)):
        attack(database, 1, number, robust)
    age(database, 29)
    clean(service)
    assert all(kept(database, sha(f"merged {number}")) for number in range(3))
    age(database, 31)
    clean(service)
    assert [kept(database, sha(f"merged {number}")) for number in range(3)] == [False, False, True]
    with database.reading() as session:
        assert strongest_certificates.of_entry(session, ranking.get(session, 1).entry) == sha("merged 2")


# --- what their owners remove ------------------------------------------------------------------------------------


@either_database
def test_a_job_is_removed_by_whose_it_is(
    database: Database,
    visitor: TestClient,
) -> None:
    ada, bob = (bearer(token_of(database, name, Scope.SUBMIT)) for name in ("Ada", "Bob"))
    bad = failed(database)
    assert_problem(visitor.delete(f"/api/v1/jobs/{bad}", headers=bob), 403, "is Ada's")
    assert visitor.delete(f"/api/v1/jobs/{bad}", headers=ada).status_code == 204
    assert_problem(visitor.get(f"/api/v1/jobs/{bad}"), 404, f"no job {bad}")
    with database.writing() as session:
        waiting = jobs.create(session, tiny_train_spec(), submitter="Ada").id
    assert_problem(visitor.delete(f"/api/v1/jobs/{waiting}", headers=ada), 409, "is queued; cancel it first")


@either_database
def test_what_a_result_stands_on_is_not_removed(client: TestClient, database: Database) -> None:
    weights = train(database, "Ranked")
    result = measure(database, weights, robust=100)
    trained = min(numbers(database))
    assert_problem(client.delete(f"/api/v1/jobs/{result}"), 409, "it has a result")
    assert_problem(client.delete(f"/api/v1/jobs/{trained}"), 409, "a job or an entry needs them")
    assert_problem(client.delete(f"/api/v1/weights/{weights}"), 409, "a job or an entry needs them")
    unmeasured = train(database, "Unmeasured")
    assert client.delete(f"/api/v1/weights/{unmeasured}").status_code == 204
    assert not kept(database, unmeasured)
    last = max(numbers(database))
    assert client.delete(f"/api/v1/jobs/{last}").status_code == 204
    assert numbers(database) == {trained, result}


@either_database
def test_what_another_has_sent_stays_theirs(
    client: TestClient,
    database: Database,
    visitor: TestClient,
) -> None:
    """Though it is what one has trained oneself."""
    ada = bearer(token_of(database, "Ada", Scope.SUBMIT))
    weights = train(database, "Unmeasured")
    assert "fetch the file</a>" in client.get("/models/1").text
    with database.writing() as session:
        session.execute(update(Job).values(submitter="Ada"))
        job_files.record_upload(session, StoredFile(weights, 10), "safetensors", "Bob")
    assert visitor.delete(f"/api/v1/weights/{weights}", headers=ada).status_code == 204
    with database.reading() as session:
        assert session.scalars(select(JobFile.id).where(JobFile.kind == FileKind.WEIGHTS)).all() == []
    assert kept(database, weights), "for Bob"
    assert "the file is no longer stored" in client.get("/models/1").text


@either_database
def test_an_evaluation_goes_with_its_shards(client: TestClient, database: Database) -> None:
    weights = train(database, "Sharded")
    spec = measuring(weights, shards=2, batch_size=180)
    with database.writing() as session:
        whole = jobs.create(session, spec)
        shard = whole.shards[0].id
        jobs.request_cancel(session, whole.id)
    assert_problem(client.delete(f"/api/v1/jobs/{shard}"), 409, f"a shard of job {whole.id}")
    assert client.delete(f"/api/v1/jobs/{whole.id}").status_code == 204
    assert len(numbers(database)) == 1


# --- quotas and what is told -------------------------------------------------------------------------------------


@either_database
def test_what_jobs_leave_counts_for_whose_they_are(database: Database) -> None:
    with database.writing() as session:
        tokens.create(
            session, "Ada", Scope.SUBMIT, lifetime=None, limits=tokens.Limits(upload_bytes=25), by=COMMAND_LINE
        )
    for _ in range(2):
        failed(database)
    with database.writing() as session:
        assert quotas.used(session, "Ada").upload_bytes == 20
        quotas.check_room_for_job(session, "Ada")
        with pytest.raises(TooMany, match="5 are left; remove weights or jobs"):
            quotas.check_upload_fits(session, "Ada", 6)
        with pytest.raises(TooLarge):
            quotas.check_upload_fits(session, "Ada", 26)
    failed(database)
    with database.reading() as session, pytest.raises(TooMany, match="Ada has 30 bytes stored, and the limit is 25"):
        quotas.check_room_for_job(session, "Ada")
    with database.reading() as session:
        assert quotas.kept_by_all(session) == {"Ada": 30}


def test_storage_tells_what_the_cleanup_does(service: Service, settings: Settings) -> None:
    database = service.database
    failed(database)
    train(database, "Unmeasured")
    with database.writing() as session:
        job_files.record_upload(session, StoredFile(sha("sent"), 1000), "safetensors", "Ada")

    def told() -> dict[str, tuple[int, int | None, str]]:
        with database.reading() as session:
            return {s.title: (s.number, s.size_bytes, s.goes) for s in storage.shares(session, settings)}

    with database.reading() as session:
        day = f"{database_now(session) + timedelta(days=7):%Y-%m-%d}"
    before = told()
    assert before["what failed and cancelled jobs saved"] == (
        1,
        10,
        f"from {day} on (GKLBENCH_CHECKPOINT_RETENTION_DAYS)",
    )
    assert before["trained weights without a board entry"][:2] == (1, 10)
    assert before["sent weights that nothing needs"][:2] == (1, 1000)
    assert before["ended jobs without a result"][0] == 1
    age(database, 8)
    clean(service)
    after = told()
    assert after["what failed and cancelled jobs saved"][:2] == (0, 0)
    assert after["trained weights without a board entry"][:2] == (1, 10)


@either_database
def test_storage_on_the_command_line(
    settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed(database)
    for name in ("database_url", "data_dir"):
        monkeypatch.setenv(f"GKLBENCH_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setattr("app.cli.process_cli.console", Console(width=200))
    (settings.data_dir / "runs" / "1").mkdir(parents=True)
    (settings.data_dir / "runs" / "1" / "file").write_bytes(bytes(5000))
    result = CliRunner().invoke(cli, ["storage"])
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "runs 5.0 kB" in lines
    assert "Ada 10 B" in lines
    assert any(line.startswith("what failed and cancelled jobs saved 1 10 B from 2") for line in lines)


def test_every_state_has_ended_or_not() -> None:
    assert {state for state in JobState if not state.is_final} == set(UNFINISHED)
