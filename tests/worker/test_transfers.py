"""One entry's adversarial examples on another, all the way: asked for over REST, measured by a worker, on the page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app import jobs
from app.boards import ranking, results, strongest_certificates
from app.db.database import Database
from app.db.tables import Entry, ExternalAttack, FileKind, Job, JobFile, Transfer
from app.evidence import transfers
from app.http.service import Service
from app.jobs import job_files
from app.maintenance.cleanup import clean
from app.store import ArtifactStore
from gkl.answers import ComparisonView, JobState, TransferView
from gkl.data import load_test, unit_range
from gkl.errors import FailureCode
from gkl.evaluation import evaluate, verify
from gkl.evaluation.certificate import read_certificate
from gkl.files import sha256_of
from gkl.models import load_model
from gkl.outcome import EvaluationOutcome
from gkl.run_context import RunContext
from gkl.spec import Evaluation, ThreatModel, TrainSpec
from gkl.training import train as train_network
from tests.databases import either_database
from tests.examples import weakened
from tests.specs import NO_FILES, tiny_train_spec
from tests.worker.test_worker import files, look
from tests.worker.test_worker import worker as _worker_fixture
from worker.tasks import Worker

worker = _worker_fixture
HTML = {"Accept": "text/html"}


@dataclass(frozen=True)
class Measured:
    """A network with its weights and its verdict."""

    spec: TrainSpec
    weights: Path
    certificate: Path
    outcome: EvaluationOutcome


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[Measured]:
    """'weak', whose certificate misses half of what breaks it, and 'other'."""
    found = []
    for seed, name in enumerate(("weak", "other")):
        directory = tmp_path_factory.mktemp(name)
        evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.4), batch_size=360)
        spec = tiny_train_spec(name=name, epochs=6, architecture="tiny_cnn", seed=seed, evaluation=evaluation)
        made = train_network(spec, RunContext(directory=directory, datasets_dir=NO_FILES))
        weights = directory / made.weights
        asked = spec.follow_up(sha256_of(weights))
        assert asked is not None
        outcome = evaluate(asked, weights, RunContext(directory=directory / "e", datasets_dir=NO_FILES, device="cpu"))
        certificate = directory / "e" / "certificate.safetensors"
        if name == "weak":
            missed = len(read_certificate(certificate).tensors["index"]) // 2
            certificate, _ = weakened(certificate, directory, missed)
            assert outcome.robust_correct is not None
            outcome = outcome.model_copy(update={"robust_correct": outcome.robust_correct + missed})
        found.append(Measured(spec, weights, certificate, outcome))
    return found


@pytest.fixture
def two(database: Database, store: ArtifactStore, networks: list[Measured]) -> None:
    """Entry 1 'weak' and entry 2 'other', of one board, as workers would have left them."""
    for network in networks:
        weights, certificate = store.put(network.weights), store.put(network.certificate)
        asked = network.spec.follow_up(weights.sha256)
        assert asked is not None
        with database.writing() as session:
            jobs.create(session, network.spec)
            trained = jobs.succeed(session, claimed(session))
            job_files.add_file(session, trained.id, FileKind.WEIGHTS, number=1, file="w", stored=weights)
            results.record_model(session, trained, network.spec, weights.sha256)
            jobs.create(session, asked)
            job = jobs.succeed(session, claimed(session))
            job_files.add_file(session, job.id, FileKind.CERTIFICATE, number=0, file="c", stored=certificate)
            results.record_evaluation(session, job, asked, network.outcome, certificate_sha256=certificate.sha256)


def claimed(session: Session) -> jobs.Claim:
    claim = jobs.claim(session, worker="w", lease=timedelta(seconds=90))
    assert claim is not None
    return claim


def ask(client: TestClient, source: int, target: int, **query: str) -> int:
    answer = client.post(f"/api/v1/entries/{target}/transfers", json={"source": source}, params=query)
    assert answer.status_code == 202, answer.text
    job_id: int = answer.json()["id"]
    assert answer.headers["location"] == f"/api/v1/jobs/{job_id}"
    return job_id


def listed(client: TestClient, entry_id: int) -> list[TransferView]:
    answer = client.get(f"/api/v1/entries/{entry_id}/transfers")
    assert answer.status_code == 200, answer.text
    return [TransferView.model_validate(each) for each in answer.json()]


def compared(client: TestClient, *numbers: int) -> ComparisonView:
    answer = client.get("/api/v1/compare", params={"entries": list(numbers)})
    assert answer.status_code == 200, answer.text
    return ComparisonView.model_validate_json(answer.content)


def entry_of(database: Database, entry_id: int) -> Entry:
    with database.reading() as session:
        return ranking.get(session, entry_id).entry


def certificate_of(worker: Worker, entry_id: int) -> Path:
    with worker.database.reading() as session:
        found = strongest_certificates.of_entry(session, ranking.get(session, entry_id).entry)
    assert found is not None
    return worker.store.path(found)


# Where rows are locked one by one.
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.usefixtures("two")
def test_what_is_measured_is_counted_shown_and_lowers_the_target(worker: Worker, client: TestClient) -> None:
    database = worker.database
    known = [read_certificate(certificate_of(worker, number)) for number in (1, 2)]
    before = entry_of(database, 1)
    page = client.get("/compare?entries=1&entries=2", headers=HTML).text
    assert "adversarial examples on other: not measured." in page
    assert page.count(">Measure it</button>") == 2
    # The page's own form asks for one of them, the API for the other.
    form = {"source": "2", "target": "1"}
    asked = client.post("/compare?entries=1&entries=2", data=form, headers=HTML, follow_redirects=False)
    assert (asked.status_code, asked.headers["location"]) == (303, "/compare?entries=1&entries=2#transfers")
    job_id = listed(client, 1)[0].job_id
    page = client.get("/compare?entries=1&entries=2", headers=HTML).text
    assert f'<a href="/jobs/{job_id}">Job {job_id}</a>' in page
    back = ask(client, 1, 2, submitter="Ada")
    worker.run_all_due()
    for each in (job_id, back):
        assert look(database, each).state is JobState.SUCCEEDED, look(database, each).failure_message

    # Other's examples on weak's network, counted directly.
    weights = worker.store.path(known[0].weights_sha256)
    model, data = load_model("tiny_cnn", "digits", weights, None).eval(), load_test("digits", NO_FILES)
    index = known[1].tensors["index"]
    with torch.no_grad():
        right = model(unit_range(data.images[index])).argmax(1) == data.labels[index]
        fooled = model(known[1].tensors["adversarial"]).argmax(1) != data.labels[index]
    lost = int((right & fooled & (known[0].tensors["broken_by"][index] == -1)).sum())
    assert lost > 0
    (measured,) = (each for each in listed(client, 1) if each.target_id == 1)
    assert measured.counts is not None
    counts = measured.counts
    assert [counts.examples, counts.clean_correct, counts.broken] == [
        len(index),
        int(right.sum()),
        int((right & fooled).sum()),
    ]
    assert sum(each.broken for each in measured.attacks) == counts.broken
    assert (measured.newly_broken, measured.is_current, measured.state) == (lost, True, JobState.SUCCEEDED)

    # On the board, as an external attack.
    entry = entry_of(database, 1)
    assert before.robust_accuracy is not None
    assert entry.robust_accuracy == entry.external_accuracy == pytest.approx(before.robust_accuracy - lost / 360)
    (attack,) = client.get("/api/v1/entries/1").json()["external_attacks"]
    assert (attack["name"], attack["broken"], attack["job_id"]) == ("transfer from other", lost, job_id)
    checked = verify(certificate_of(worker, 1), weights, datasets_dir=NO_FILES, device="cpu")
    assert (checked.problems, checked.robust_correct) == ([], round(360 * entry.robust_accuracy))
    assert certificate_of(worker, 1).name in {path.name for path in files(worker.settings)}, "the cleanup keeps it"
    with database.reading() as session:
        kept = session.scalars(select(JobFile.kind).where(JobFile.job_id.in_((job_id, back)))).all()
        assert kept == [FileKind.CERTIFICATE], "the source's is no longer named by the job"

    # Beside each other: weak has other examples since, so that the way back can be measured again.
    there, again = compared(client, 2, 1).transfers
    assert (there.source_id, there.target_id) == (2, 1)
    assert there.sentence is not None
    said = (
        f"Of other's {counts.clean_correct} adversarial examples whose clean images weak gets right, {counts.broken} ("
    )
    assert there.sentence.startswith(said)
    assert re.search(r"\(\d+\.\d %, 95 % interval \d+\.\d to \d+\.\d\) break weak too\. ", there.sentence)
    assert f"{lost} of them broke points that weak had withstood" in there.sentence
    assert (there.can_be_measured, again.can_be_measured) == (False, True)
    assert again.sentence is not None
    assert again.sentence.endswith("weak has got new examples since.")
    page = client.get("/compare?entries=2&entries=1", headers=HTML).text
    assert said.replace("'", "&#39;") in page
    assert page.count(">Measure it again</button>") == 1
    assert f"{counts.broken} break it" in client.get(f"/jobs/{job_id}", headers=HTML).text


@either_database
@pytest.mark.usefixtures("two")
def test_of_two_that_end_at_once_the_second_is_measured_again(
    worker: Worker, database: Database, client: TestClient
) -> None:
    job_id = ask(client, 2, 1)
    save, held = transfers.record, []

    def other_first(session, job, outcome, stored):  # type: ignore[no-untyped-def]
        held.append(job.id)
        # As if another worker had merged examples while these were measured.
        return False if held == [job_id] else save(session, job, outcome, stored)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfers, "record", other_first)
        assert worker.run_next() == job_id
        assert look(database, job_id).state is JobState.QUEUED
        worker.run_all_due()
    assert (look(database, job_id).state, look(database, job_id).attempt) == (JobState.SUCCEEDED, 2)
    outcome = listed(client, 1)[0]
    assert outcome.newly_broken > 0
    # What was found about another certificate is not recorded, and leaves no attack.
    with database.writing() as session:
        transfer = session.scalars(select(Transfer)).one()
        found = transfers.TransferOutcome.model_validate(transfer.outcome)
        assert not transfers.record(session, transfer.job, found, None)
        nothing_new = found.merged.model_copy(update={"broken": 0})
        assert not transfers.record(session, transfer.job, found.model_copy(update={"merged": nothing_new}), None)
        assert session.scalar(select(func.count()).select_from(ExternalAttack)) == 1


@either_database
@pytest.mark.usefixtures("two")
def test_cancelled_retried_asked_for_twice_and_removed(worker: Worker, database: Database, client: TestClient) -> None:
    job_id = ask(client, 1, 2)
    twice = client.post("/api/v1/entries/2/transfers", json={"source": 1})
    assert (twice.status_code, f"Job {job_id} is already measuring this" in twice.json()["detail"]) == (409, True)
    assert client.post(f"/api/v1/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    (pair, _) = compared(client, 1, 2).transfers
    assert (pair.can_be_measured, pair.measured, pair.job_id, pair.sentence) == (True, None, None, None)
    assert client.post(f"/api/v1/jobs/{job_id}/retry").status_code == 202
    worker.run_all_due()
    assert look(database, job_id).state is JobState.SUCCEEDED, look(database, job_id).failure_message
    again = client.post("/api/v1/entries/2/transfers", json={"source": 1})
    assert (again.status_code, "has already measured this" in again.json()["detail"]) == (409, True)
    kept = client.delete(f"/api/v1/jobs/{job_id}")
    assert (kept.status_code, "it has a result" in kept.json()["detail"]) == (409, True)
    # A cancelled one that nothing stands on goes with its row.
    other = ask(client, 2, 1)
    client.post(f"/api/v1/jobs/{other}/cancel")
    assert client.delete(f"/api/v1/jobs/{other}").status_code == 204
    assert [each.job_id for each in listed(client, 1)] == [job_id]


@either_database
@pytest.mark.usefixtures("two")
def test_an_entry_that_goes_takes_its_transfers_with_it(worker: Worker, database: Database, client: TestClient) -> None:
    done, waiting = ask(client, 1, 2), 0
    worker.run_all_due()
    waiting = ask(client, 2, 1)
    with database.writing() as session:
        session.execute(delete(Entry).where(Entry.id == 2))
    with database.reading() as session:
        assert session.scalars(select(Transfer)).all() == []
    worker.run_all_due()
    job = look(database, waiting)
    assert (job.state, job.failure_code) == (JobState.FAILED, FailureCode.INVALID_INPUT)
    assert "one of the two entries was removed" in (job.failure_message or "")
    assert listed(client, 1) == []
    for each in (done, waiting):
        assert client.get(f"/jobs/{each}", headers=HTML).status_code == 200
        assert client.delete(f"/api/v1/jobs/{each}").status_code == 204


@either_database
@pytest.mark.usefixtures("two")
def test_the_examples_stay_until_they_are_tried(worker: Worker, database: Database, client: TestClient) -> None:
    """Another certificate may take the place of the source's while the job waits."""
    source = certificate_of(worker, 1)
    job_id = ask(client, 1, 2)
    with database.writing() as session:
        session.execute(delete(JobFile).where(JobFile.sha256 == source.name, JobFile.job_id != job_id))
    service = Service.from_settings(worker.settings)
    clean(service, young_seconds=0)
    service.database.close()
    assert source.exists()
    worker.run_all_due()
    assert look(database, job_id).state is JobState.SUCCEEDED, look(database, job_id).failure_message


@either_database
@pytest.mark.usefixtures("two")
def test_of_the_same_two_the_newest_counts(worker: Worker, database: Database, client: TestClient) -> None:
    """An older one may then be removed with its job."""
    old = ask(client, 1, 2)
    worker.run_all_due()
    with database.writing() as session:
        session.execute(update(Transfer).values(source_certificate_sha256="0" * 64))
    (pair, _) = compared(client, 1, 2).transfers
    assert (pair.can_be_measured, (pair.sentence or "").endswith("weak has got new examples since.")) == (True, True)
    new = ask(client, 1, 2)
    worker.run_all_due()
    (pair, _) = compared(client, 1, 2).transfers
    assert pair.measured is not None
    assert (pair.measured.job_id, pair.can_be_measured) == (new, False)
    assert [client.delete(f"/api/v1/jobs/{number}").status_code for number in (old, new)] == [204, 409]
    with database.reading() as session:
        assert session.scalars(select(Job.id).where(Job.id == old)).all() == []
        assert jobs.get(session, new).kind == "transfer"
