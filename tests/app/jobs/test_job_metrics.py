"""The points of a training's curves, as they are asked for."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime

from fastapi.testclient import TestClient

from app import jobs
from app.db.database import Database
from app.db.tables import JobEvent
from app.jobs import job_metrics
from gkl.answers import JobMetrics
from gkl.outcome import EpochFinished
from tests.app.boards.test_results import LEASE
from tests.databases import either_database
from tests.specs import tiny_train_spec


def finished(number: int, **changes: object) -> EpochFinished:
    first = {
        "epoch": number,
        "epochs": 3,
        "loss": 1.5,
        "clean_accuracy": 0.5,
        "adversarial_accuracy": 0.25,
        "epsilon": 0.1,
        "learning_rate": 0.1,
        "seconds": 2.0,
        "parts": {"natural": 1.25, "kl": 0.03125},
    }
    return EpochFinished.model_validate(first | changes)


def trained(database: Database, *epochs: EpochFinished) -> int:
    with database.writing() as session:
        job_id = jobs.create(session, tiny_train_spec(epochs=3, evaluation=None)).id
        claim = jobs.claim(session, worker="host-a/1", lease=LEASE)
        assert claim is not None
        for epoch in epochs:
            jobs.record_event(session, claim, epoch)
    return job_id


@either_database
def test_each_epoch_is_there_once_as_it_was_last(client: TestClient, database: Database) -> None:
    again = finished(2, loss=0.75, held_out_robust_accuracy=0.2)
    job_id = trained(database, finished(1), finished(2), again)
    address = f"/api/v1/jobs/{job_id}/metrics"
    answer = JobMetrics.model_validate(client.get(address).json())
    assert answer == JobMetrics(job_id=job_id, epochs=[finished(1), again])
    asked = client.get(address, params={"format": "csv"})
    assert asked.headers["content-type"] == "text/csv; charset=utf-8"
    assert asked.headers["content-disposition"] == f'attachment; filename="job-{job_id}-metrics.csv"'
    rows = list(csv.DictReader(io.StringIO(asked.text)))
    assert [(row["epoch"], row["loss"], row["loss_kl"], row["held_out_robust_accuracy"]) for row in rows] == [
        ("1", "1.5", "0.03125", ""),
        ("2", "0.75", "0.03125", "0.2"),
    ]


@either_database
def test_the_header_chooses_where_the_address_does_not(client: TestClient, database: Database) -> None:
    address = f"/api/v1/jobs/{trained(database, finished(1))}/metrics"
    for accept, kind in (
        ("text/csv", "text/csv"),
        ("application/json;q=0.5, text/csv", "text/csv"),
        ("text/csv;q=0.5, application/json", "application/json"),
        ("*/*", "application/json"),
        ("text/csv;q=x", "application/json"),
    ):
        answer = client.get(address, headers={"Accept": accept})
        assert answer.headers["content-type"].partition(";")[0] == kind, accept
        assert answer.headers["vary"] == "Accept"
    asked = client.get(address, params={"format": "json"}, headers={"Accept": "text/csv"})
    assert asked.headers["content-type"] == "application/json"


@either_database
def test_what_has_no_curves_has_none(client: TestClient, database: Database) -> None:
    job_id = trained(database)
    assert client.get(f"/api/v1/jobs/{job_id}/metrics").json() == {"job_id": job_id, "epochs": []}
    assert client.get(f"/api/v1/jobs/{job_id}/metrics?format=csv").text.startswith("epoch,loss,clean_accuracy,")
    assert client.get("/api/v1/jobs/99/metrics").json()["detail"] == "There is no job 99."
    assert client.get(f"/api/v1/jobs/{job_id}/metrics?format=xml").status_code == 422


def test_parts_that_only_some_epochs_have_are_empty_in_the_others() -> None:
    lines = "".join(job_metrics.as_csv([finished(1, parts={"natural": 1.0}), finished(2)])).splitlines()
    assert lines[0].startswith("epoch,loss,loss_natural,loss_kl,clean_accuracy,")
    assert lines[1].startswith("1,1.5,1.0,,0.5,")


# As a worker before version 0.2 told of an epoch, and of a step.
STORED = {
    "epoch": 1,
    "epochs": 3,
    "loss": 1.5,
    "clean_accuracy": 0.5,
    "adversarial_accuracy": 0.25,
    "epsilon": 0.1,
    "learning_rate": 0.05,
    "seconds": 2.0,
    "parts": {"natural": 1.25, "ce": 2.5},
    "held_out_clean_accuracy": None,
    "held_out_robust_accuracy": 0.125,
}
STORED_STEP = {
    "step": 12,
    "steps": 300,
    "loss": 11.25,
    "parts": {"natural": 1.5, "ce": 2.25, "wmse": 0.0375},
    "clean_accuracy": 0.875,
    "adversarial_accuracy": 0.5,
    "images_per_second": 1234.5,
}


@either_database
def test_what_an_earlier_version_stored_is_read_shown_and_exported(client: TestClient, database: Database) -> None:
    job_id = trained(database)
    with database.writing() as session:
        session.add(JobEvent(job_id=job_id, type="epoch", data=STORED, created_at=datetime.now(UTC)))
        found = jobs.get(session, job_id)
        found.progress = {"stage": "training", "fraction": 0.04, "detail": "epoch 1", "metrics": STORED_STEP}
    (epoch,) = JobMetrics.model_validate(client.get(f"/api/v1/jobs/{job_id}/metrics").json()).epochs
    assert (epoch.loss, epoch.parts, epoch.held_out_robust_accuracy) == (1.5, {"natural": 1.25, "ce": 2.5}, 0.125)
    assert "held_out_clean_accuracy" not in epoch.metrics
    assert client.get(f"/api/v1/jobs/{job_id}/metrics?format=csv").text.splitlines() == [
        "epoch,loss,loss_natural,loss_ce,clean_accuracy,adversarial_accuracy,held_out_clean_accuracy,"
        "held_out_robust_accuracy,epsilon,learning_rate,seconds",
        "1,1.5,1.25,2.5,0.5,0.25,,0.125,0.1,0.05,2.0",
    ]
    page = client.get(f"/jobs/{job_id}", headers={"Accept": "text/html"}).text
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    for shown in ("Loss 11.250", "wMSE 0.0375", "Clean 87.5 %", "Images/s 1234", "under PGD, best 12.5 % in epoch 1"):
        assert shown in text


def test_a_training_without_an_adversary_leaves_its_columns_empty() -> None:
    natural = EpochFinished(
        epoch=1, epochs=1, seconds=2.0, metrics={"loss": 1.5, "clean_accuracy": 0.5, "learning_rate": 0.1}
    )
    head, line = "".join(job_metrics.as_csv([natural])).splitlines()
    assert dict(zip(head.split(","), line.split(","), strict=True)) == {
        "epoch": "1",
        "loss": "1.5",
        "clean_accuracy": "0.5",
        "adversarial_accuracy": "",
        "held_out_clean_accuracy": "",
        "held_out_robust_accuracy": "",
        "epsilon": "",
        "learning_rate": "0.1",
        "seconds": "2.0",
    }
