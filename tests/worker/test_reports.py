"""A certificate of somebody's own network, all the way: sent over REST, checked by a worker, on the board."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from torch import nn

import gkl
from app.boards import (
    listing,
    ranking,
    robustbench,
    robustbench_export,
)
from app.db.database import Database
from app.db.tables import FileKind, JobFile
from gkl.answers import JobState
from gkl.evaluation.certificate import contents_sha256
from gkl.formats.tensor_files import load_metadata
from tests.databases import either_database
from tests.specs import tiny_train_spec
from tests.worker.test_worker import files, look, send
from tests.worker.test_worker import worker as _worker_fixture
from worker.tasks import Worker

worker = _worker_fixture
BINARY = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network without hidden layers, about all images of the digits."""
    return verdict().save_certificate(tmp_path_factory.mktemp("own") / "certificate.safetensors")


def verdict(seed: int = 0, **options: Any) -> gkl.Verdict:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    return gkl.evaluate(model, "digits", progress=False, **options)


def sent(client: TestClient, path: Path, **said: Any) -> Any:
    query = {"name": "Mine", "submitter": "Ada", "architecture": "one layer"} | said
    return client.post("/api/v1/reports", params=query, content=path.read_bytes(), headers=BINARY)


def forged(certificate: Path, path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Path:
    """With other contents, and the hash of those."""
    tensors, metadata = load_file(certificate), load_metadata(certificate)
    change(tensors, metadata)
    metadata["contents_sha256"] = contents_sha256(tensors, metadata)
    save_file(tensors, path, {"gklbench": json.dumps(metadata, sort_keys=True)})
    return path


@either_database
def test_it_has_a_row_that_says_who_measured_it_and_no_rank(
    worker: Worker, database: Database, client: TestClient, tmp_path: Path
) -> None:
    certificate = verdict(epsilon=0.9).save_certificate(tmp_path / "certificate.safetensors")
    send(database, tiny_train_spec(epochs=1, architecture="tiny_cnn"))
    worker.run_all_due()
    answer = sent(client, certificate, authors="Ada L.", venue="NeurIPS 2025", link="https://example.org")
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["kind"], job["submitter"]) == ("report", "Ada")
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    worker.run_all_due()
    assert look(database, job["id"]).state is JobState.SUCCEEDED, look(database, job["id"]).failure_message
    board = client.get("/api/v1/leaderboards/digits/Linf-0.9").json()["entries"]
    assert [(e["provenance"], e["rank"]) for e in board] == [("verified", 1), ("reported", None)]
    entry = board[1]
    assert (entry["name"], entry["authors"], entry["year"], entry["architecture"]) == (
        *("Mine", "Ada L.", 2025),
        "one layer",
    )
    assert (entry["reported"], entry["robust"], entry["autoattack"]) == (0.0, None, None)
    assert entry["clean"]["accuracy"] == 41 / 360
    assert client.get(f"/api/v1/jobs/{job['id']}").json()["entry_id"] == entry["id"]
    # Its file and its points are there for all, its proof is what was sent.
    kept = client.get(f"/api/v1/entries/{entry['id']}/certificate")
    assert kept.content == certificate.read_bytes()
    points = client.get(f"/api/v1/entries/{entry['id']}/points").json()
    assert sum(point["broken_by"] is not None for point in points) == 41
    page = client.get(f"/entries/{entry['id']}").text
    assert "only they have the network" in page
    assert "this service does not have the network" in page
    assert f"/entries/{entry['id']}" in client.get(f"/jobs/{job['id']}").text
    assert '0.00 %</span><span class="interval">reported</span>' in client.get("/leaderboards/digits/Linf-0.9").text
    # No attack can be checked against it, and RobustBench's form has no place for it.
    attack = client.post(f"/api/v1/entries/{entry['id']}/attacks?name=a", content=b"", headers=BINARY)
    assert "its owner's certificate; its weights are not stored here" in attack.json()["detail"]
    info = client.get(f"/api/v1/entries/{entry['id']}/model_info.json")
    assert (info.status_code, "the network was not evaluated here" in info.text) == (409, True)
    with database.reading() as session:
        assert robustbench_export.export_to(session, tmp_path / "out") == 1
    table = client.get("/api/v1/leaderboards/digits/Linf-0.9/export/csv").text
    assert "reported" in table.splitlines()[2]


@either_database
def test_the_same_network_again_takes_the_place_of_its_own_row_alone(
    worker: Worker, database: Database, client: TestClient, certificate: Path, tmp_path: Path
) -> None:
    for number, said in enumerate(({}, {"name": "Better name"}, {"submitter": "Bob"})):
        answer = sent(client, certificate, **said)
        assert answer.status_code == 202
        worker.run_all_due()
        assert look(database, answer.json()["id"]).state is JobState.SUCCEEDED, number
    again = sent(client, verdict(batch_size=100).save_certificate(tmp_path / "again.safetensors"), name="Third")
    worker.run_all_due()
    board = client.get("/api/v1/leaderboards/digits/Linf").json()["entries"]
    assert sorted(entry["name"] for entry in board) == ["Mine", "Third"]
    assert len({entry["model_id"] for entry in board}) == 2
    # Its first file goes with time; that of the row that stands does not.
    files(worker.settings.model_copy(update={"certificate_retention_days": 0.0}))
    with database.reading() as session:
        left = {file.job_id for file in session.query(JobFile).where(JobFile.kind == FileKind.CERTIFICATE)}
    assert again.json()["id"] in left
    for entry in board:
        assert client.get(f"/api/v1/entries/{entry['id']}/certificate").status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_its_pixels_or_labels_tell_fails_the_job(
    worker: Worker, database: Database, client: TestClient, certificate: Path, tmp_path: Path
) -> None:
    def further_away(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        tensors["adversarial"][0] = 1 - tensors["clean"][0]

    def other_label(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        tensors["label"][5] = (tensors["label"][5] + 1) % 10

    def other_image(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        tensors["clean"][0, 0, 0, 0] = 1 - tensors["clean"][0, 0, 0, 0]

    def no_such_class(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        tensors["adversarial_prediction"][0] = 10

    def better(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        metadata["robust_correct"] = 300

    def other_place(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        tensors["broken_by"][tensors["index"][0]] = -1

    for change, says in (
        (further_away, "further than epsilon"),
        (other_label, "point 5: its label is"),
        (other_image, "the clean image it shows is another than the data's"),
        (no_such_class, "it holds the class 10, and digits has 10 classes"),
        (better, "it claims (41, 300) clean and robust points"),
        (other_place, "does not fit its adversarial examples"),
    ):
        answer = sent(client, forged(certificate, tmp_path / "forged", change))
        assert answer.status_code == 202, answer.text
        worker.run_all_due()
        job = look(database, answer.json()["id"])
        assert job.state is JobState.FAILED
        assert says in (job.failure_message or ""), job.failure_message
    # Nothing can be retried into a row, and nothing of it is on a board.
    assert client.get("/api/v1/leaderboards").json() == []
    settings = worker.settings.model_copy(update={"checkpoint_retention_days": 0.0})
    assert files(settings) == [], "the files of what did not hold go"
    retried = client.post(f"/api/v1/jobs/{job.id}/retry")
    assert "send it again" in retried.json()["detail"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_recorded_answers_do_not_vary(
    worker: Worker, database: Database, client: TestClient, certificate: Path, tmp_path: Path
) -> None:
    """A certificate that says so is checked less strictly, where the network is asked."""

    def all_robust(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        metadata["answers_vary"] = True
        tensors["prediction"] = tensors["label"].clone()
        tensors["adversarial_prediction"] = tensors["label"][tensors["index"]].clone()
        metadata["clean_correct"] = metadata["robust_correct"] = 360

    answer = sent(client, forged(certificate, tmp_path / "forged", all_robust))
    worker.run_all_due()
    job = look(database, answer.json()["id"])
    assert job.state is JobState.FAILED
    assert "the certificate does not hold: point 0: it is listed on the wrong side" in (job.failure_message or "")


@either_database
def test_of_two_certificates_the_one_that_was_sent_last_stands(
    worker: Worker, database: Database, client: TestClient, certificate: Path
) -> None:
    first = sent(client, certificate, name="Older").json()["id"]
    client.post(f"/api/v1/jobs/{first}/cancel")
    sent(client, certificate, name="Newer")
    worker.run_all_due()
    client.post(f"/api/v1/jobs/{first}/retry")
    worker.run_all_due()
    assert look(database, first).state is JobState.SUCCEEDED
    (entry,) = client.get("/api/v1/leaderboards/digits/Linf").json()["entries"]
    assert entry["name"] == "Newer"
    refused = client.post(f"/api/v1/entries/{entry['id']}/rank", json={"note": "believe it"})
    assert refused.status_code == 409


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_its_head_tells_is_refused_when_it_is_sent(
    client: TestClient, certificate: Path, tmp_path: Path, database_url: str
) -> None:
    def of_own_images(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        metadata["dataset"] = "own"

    def of_other_protocol(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        metadata["evaluation"] |= {"protocol": "custom", "attacks": ["square"]}

    def of_fewer(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        for name in ("label", "prediction", "broken_by", "perturbation_norm"):
            tensors[name] = tensors[name][:300].clone()

    def without_images(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        del tensors["clean"]

    def with_more(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        tensors["freight"] = torch.zeros(1000)

    def of_other_type(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        tensors["index"] = tensors["index"].bool()

    def of_other_attacks(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        metadata["attacks"] = ["APGD-CE"]

    def with_own_attacks(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        metadata["attacks"] = [*metadata["attacks"], "A" * 400]

    def with_places_of_attacks(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        metadata["attacks"] = dict.fromkeys(metadata["attacks"], 0)

    def of_long_names(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        metadata["weights_sha256"] = "},\n@misc{x," * 20

    def with_freight(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        metadata["manifest"]["freight"] = [{}] * 10

    def with_very_much(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        metadata["manifest"]["packages"] = {f"package {number}": "1" for number in range(10_000)}

    def with_a_sermon(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        metadata["manifest"]["flags"] = [{"name": "gap", "sentence": "x" * 501}]

    def of_a_budget_of_its_own(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        metadata["evaluation"]["threat_model"]["epsilon"] = 0.9123456789

    def of_nothing(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        metadata["manifest"] = 7

    for change, says in (
        (of_own_images, "is about other images than those that there are boards of: digits, "),
        (of_other_protocol, "is of protocol 'custom', and a board takes 'standard' and 'plus'"),
        (of_fewer, "about 300 of the 360 test images of digits, and a board is about all of them"),
        (
            of_other_attacks,
            "names the attacks APGD-CE, and those of protocol 'standard' are APGD-CE, APGD-T, FAB-T, Sq",
        ),
        (with_own_attacks, "names the attacks APGD-CE, "),
        (with_places_of_attacks, "is not a certificate of an evaluation"),
        (of_long_names, "is not a certificate of an evaluation"),
        (with_freight, "is not a certificate of an evaluation"),
        (with_very_much, "is not a certificate of an evaluation"),
        (with_a_sermon, "is not a certificate of an evaluation"),
        (of_a_budget_of_its_own, "there is no board digits/Linf-0.9123456789; evaluate with the usual budget"),
        (without_images, "lacks the tensor 'clean'"),
        (with_more, "holds an unknown tensor 'freight'"),
        (of_other_type, "'index' is BOOL [41]"),
        (of_nothing, "is not a certificate of an evaluation"),
    ):
        answer = sent(client, forged(certificate, tmp_path / "forged", change))
        assert (answer.status_code, says in answer.json()["detail"]) == (422, True), answer.text
    save_file({"weight": torch.zeros(3)}, tmp_path / "weights")
    assert "is not a certificate" in sent(client, tmp_path / "weights").json()["detail"]
    (tmp_path / "page").write_text("<!doctype html>")
    assert "cannot be read as safetensors" in sent(client, tmp_path / "page").json()["detail"]
    assert sent(client, certificate, link="javascript:alert(1)").status_code == 422
    assert sent(client, certificate, name="").status_code == 422


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_import_of_its_name_leaves_it_where_it_is(
    worker: Worker, database: Database, client: TestClient, certificate: Path
) -> None:
    sent(client, certificate, name="Carmon2019Unlabeled")
    worker.run_all_due()
    file = {"name": "Published", "clean_acc": "80.0", "autoattack_acc": "50.0", "eps": "0.2", "unreliable": False}
    report = robustbench.import_files(database, [("digits/Linf/Carmon2019Unlabeled.json", json.dumps(file).encode())])
    assert report.added == 1
    with database.reading() as session:
        board = ranking.board(session, "digits", "Linf")
        found = listing.search(session, board, listing.View())
        slugs = [row.entry.slug for row in found]
    assert slugs[0] == "Carmon2019Unlabeled"
    assert slugs[1].startswith("Carmon2019Unlabeled_")
