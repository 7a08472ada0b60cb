"""Examples against an entry, all the way: sent over REST, checked by a worker, on the board."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import select

import gkl.spec
from app import jobs
from app.boards import (
    placing,
    ranking,
    robustbench,
    strongest_certificates,
)
from app.db.database import Database
from app.db.tables import Entry, Evaluation, ExternalAttack, FileKind, JobFile
from app.evidence import external
from app.store import ArtifactStore
from gkl.answers import JobState
from gkl.data import load_test, unit_range
from gkl.errors import FailureCode
from gkl.evaluation import verify
from gkl.outcome import ExternalOutcome
from tests.app.boards.test_results import measure, train
from tests.app.boards.test_robustbench import LINF, contents
from tests.databases import either_database
from tests.examples import saved, weakened
from tests.specs import NO_FILES, tiny_train_spec
from tests.worker.test_worker import files, look, send
from tests.worker.test_worker import worker as _worker_fixture
from worker.tasks import Worker

worker = _worker_fixture
Examples = dict[str, torch.Tensor]


@pytest.fixture
def weak(worker: Worker, database: Database, store: ArtifactStore, tmp_path: Path) -> Examples:
    """An entry whose evaluation missed four points; returns their examples."""
    send(database, tiny_train_spec(epochs=1, architecture="tiny_cnn"))
    worker.run_all_due()
    with database.writing() as session:
        evaluation = session.scalars(select(Evaluation)).one()
        assert evaluation.certificate_sha256 is not None
        path, examples = weakened(store.path(evaluation.certificate_sha256), tmp_path, 4)
        stored = store.put(path)
        file = session.scalars(select(JobFile).where(JobFile.kind == FileKind.CERTIFICATE)).one()
        file.sha256 = evaluation.certificate_sha256 = stored.sha256
        assert evaluation.robust_correct is not None
        evaluation.robust_correct += 4
        evaluation.robust_accuracy = evaluation.robust_correct / evaluation.num_points
        placing.place_on_board(session, evaluation.model, evaluation.board)
    return examples


def attack(client: TestClient, path: Path, tensors: Examples, name: str = "Mine") -> int:
    response = client.post(
        f"/api/v1/entries/1/attacks?name={name}&submitter=Ada",
        content=saved(path, tensors).read_bytes(),
        headers={"Content-Type": "application/octet-stream"},
    )
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/api/v1/jobs/{response.json()['id']}"
    job_id: int = response.json()["id"]
    return job_id


def entry_of(database: Database) -> Entry:
    with database.reading() as session:
        return ranking.get(session, 1).entry


# Where rows are locked one by one.
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_examples_that_break_more_lower_the_entry_and_join_its_certificate(
    worker: Worker, client: TestClient, weak: Examples, tmp_path: Path
) -> None:
    database, store = worker.database, worker.store
    before = entry_of(database)
    assert before.robust_accuracy == before.autoattack_accuracy == 4 / 360
    first = attack(client, tmp_path / "a", {name: tensor[:3] for name, tensor in weak.items()}, "First")
    again = attack(client, tmp_path / "b", weak, "Second")
    worker.run_all_due()
    for job_id in (first, again):
        assert look(database, job_id).state is JobState.SUCCEEDED, look(database, job_id).failure_message
    entry = entry_of(database)
    assert (entry.autoattack_accuracy, entry.external_accuracy, entry.robust_accuracy) == (4 / 360, 0.0, 0.0)
    told = client.get("/api/v1/entries/1").json()
    assert [(a["name"], a["submitter"], a["examples"], a["broken"]) for a in told["external_attacks"]] == [
        ("First", "Ada", 3, 3),
        ("Second", "Ada", 4, 1),
    ]
    # More than one point in a hundred that the gradients had not led to: no rank until somebody has looked.
    assert (told["rank"], told["unreliable"]) == (None, True)
    assert "(examples that were sent 4)" in told["unrankable"]
    info = client.get("/api/v1/entries/1/model_info.json").json()
    assert (info["autoattack_acc"], info["external"]) == ("1.11", "0.0")
    # The proof of all of it.
    with database.reading() as session:
        merged = strongest_certificates.of_entry(session, ranking.get(session, 1).entry)
        assert merged is not None
        assert entry.model is not None
    weights = store.path(entry.model.weights_sha256)
    checked = verify(store.path(merged), weights, datasets_dir=NO_FILES, device="cpu")
    assert (checked.problems, checked.robust_correct) == ([], 0)
    assert merged in {path.name for path in files(worker.settings)}, "the cleanup keeps it"
    with database.reading() as session:
        kept = session.scalars(select(JobFile.kind).where(JobFile.job_id.in_((first, again)))).all()
        assert kept == [FileKind.CERTIFICATE] * 2, "the examples themselves are in it"


@either_database
def test_what_does_not_hold_is_refused_and_changes_nothing(
    worker: Worker, database: Database, client: TestClient, weak: Examples, tmp_path: Path
) -> None:
    # What its head tells is refused when it is sent.
    for wrong, says in (
        (weak | {"adversarial": weak["adversarial"].double()}, "'adversarial' is F64"),
        (weak | {"adversarial": weak["adversarial"].flatten(1)}, "Digits needs F32 [examples, 1, 8, 8]"),
        (weak | {"index": weak["index"].float()}, "'index' is F32"),
        ({"index": weak["index"]}, "lacks the tensor 'adversarial'"),
    ):
        response = client.post("/api/v1/entries/1/attacks?name=a", content=saved(tmp_path / "a", wrong).read_bytes())
        assert response.status_code == 422
        assert says in response.json()["detail"]
    page = client.post("/api/v1/entries/1/attacks?name=a", content=b"<!doctype html>")
    assert "cannot be read as safetensors" in page.json()["detail"]
    unprintable = client.post("/api/v1/entries/1/attacks?name=a%E2%80%8B", content=b"")
    assert "one printable line" in unprintable.json()["detail"]
    # What its pixels tell fails the job, with the first such point.
    good = {name: tensor.clone() for name, tensor in weak.items()}
    weak["adversarial"][1] = 2.0
    job_id = attack(client, tmp_path / "a", weak)
    worker.run_all_due()
    job = look(database, job_id)
    assert (job.state, job.failure_code) == (JobState.FAILED, FailureCode.INVALID_INPUT)
    assert f"point {int(weak['index'][1])}: its adversarial image" in (job.failure_message or "")
    # What was found about another certificate is not recorded.
    job_id = attack(client, tmp_path / "b", good)
    outcome = ExternalOutcome(
        attack="a", examples=4, broken=4, robust_correct=0, base_sha256="0" * 64, device="CPU", seconds=1.0
    )
    with database.writing() as session:
        assert not external.record(session, job_id, outcome, None)
    assert entry_of(database).external_accuracy is None
    with database.reading() as session:
        assert [attack.examples for attack in session.scalars(select(ExternalAttack))] == [None, None]


@either_database
def test_two_checks_at_once_are_merged_one_after_the_other(
    worker: Worker, database: Database, client: TestClient, weak: Examples, tmp_path: Path
) -> None:
    """The second finds that its certificate is no longer the entry's, and is run again with the new one."""
    job_id = attack(client, tmp_path / "a", {name: tensor[:2] for name, tensor in weak.items()})
    other = attack(client, tmp_path / "b", {name: tensor[2:] for name, tensor in weak.items()})
    save, held = external.record, []

    def other_first(session, held_id, outcome, stored):  # type: ignore[no-untyped-def]
        held.append(held_id)
        if held == [job_id]:
            # As if another worker had merged its examples while these were checked.
            return False
        return save(session, held_id, outcome, stored)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external, "record", other_first)
        assert worker.run_next() == job_id
        assert look(database, job_id).state is JobState.QUEUED
        worker.run_all_due()
    assert (look(database, job_id).attempt, look(database, other).attempt) == (2, 1)
    assert entry_of(database).robust_accuracy == 0.0
    with database.reading() as session:
        broken = session.scalars(select(ExternalAttack.broken).order_by(ExternalAttack.id)).all()
        assert broken == [2, 2]
        events = [e.data for e in jobs.events_after(session, job_id, 0) if e.type == "state"]
    assert "merged meanwhile" in events[2]["reason"]


@either_database
def test_where_nothing_can_be_attacked_it_says_why(client: TestClient, database: Database, tmp_path: Path) -> None:
    robustbench.import_files(database, [("cifar10/Linf/A.json", contents(LINF))])
    for path, status, says in (
        ("/api/v1/entries/1/attacks?name=a", 409, "its weights are not stored here"),
        ("/api/v1/entries/2/attacks?name=a", 404, "There is no entry 2"),
        ("/api/v1/entries/1/attacks", 422, "query.name"),
        ("/api/v1/entries/1/attacks?name=a%0ab", 422, "query.name"),
    ):
        response = client.post(path, content=b"no file")
        assert (response.status_code, says in response.json()["detail"]) == (status, True), response.text


@either_database
@pytest.mark.long
def test_examples_for_one_network_are_tried_against_the_next(
    worker: Worker, database: Database, tmp_path: Path
) -> None:
    digits = load_test("digits", NO_FILES)
    examples = {"index": torch.arange(len(digits)), "adversarial": unit_range(digits.images)}
    other = worker.store.put(saved(tmp_path / "other.safetensors", examples)).sha256
    measure(database, train(database, "other"), robust=200, epsilon=0.01, certificate_sha256=other)
    narrow = gkl.spec.Evaluation(threat_model=gkl.spec.ThreatModel(epsilon=0.01), num_points=12, batch_size=12)
    send(database, tiny_train_spec(evaluation=narrow))
    worker.run_all_due()
    with database.reading() as session:
        last = session.scalars(select(Evaluation).order_by(Evaluation.id.desc())).first()
    assert last is not None
    (transfer,) = (check for check in last.checks if check["name"] == "transfer")
    # Clean images, which break nothing; but they were tried.
    assert (transfer["value"], transfer["sources"]) == (0.0, [other])
