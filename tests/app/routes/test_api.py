"""The REST API on both databases: every answer as documented, every error in the one shape."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from redis import Redis
from safetensors.numpy import save
from sqlalchemy import update

from app import jobs
from app.core.settings import Settings
from app.db.database import Database
from app.db.tables import WorkerRow
from app.http.problems import PROBLEM_JSON, Problem
from app.http.service import Service
from app.jobs import job_log, workers
from app.jobs.broker import relay_is_running
from app.maintenance.relay import Relay
from app.routes.health import Readiness
from app.store import ArtifactStore
from gkl.catalog import ARCHITECTURES
from gkl.recipes.adversarial import digits
from tests.cluster import until
from tests.databases import either_database
from tests.local import serving
from tests.weights import weights_of

SPEC = digits().model_dump(mode="json")


def assert_problem(response: httpx2.Response, status: int, says: str) -> Problem:
    """The one shape of every error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM_JSON
    problem = Problem.model_validate(response.json())
    assert problem.status == status
    assert says in problem.detail
    return problem


def post(client: TestClient, spec: Any = SPEC, **headers: str) -> httpx2.Response:
    return client.post("/api/v1/jobs", json=spec, headers=headers)


def test_a_job_is_accepted_listed_and_cancelled(client: TestClient) -> None:
    response = post(client)
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert (job["state"], job["kind"], job["spec"]) == ("queued", "train", SPEC)
    assert client.get(response.headers["location"]).json() == job
    assert client.get("/api/v1/jobs").json() == {"jobs": [job], "next_cursor": None}
    assert client.get("/api/v1/jobs?state=queued&kind=train").json()["jobs"] == [job]
    assert client.get("/api/v1/jobs?kind=evaluate").json()["jobs"] == []
    cancelled = client.post(f"/api/v1/jobs/{job['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")


def test_a_job_is_retried_from_the_api(client: TestClient) -> None:
    job_id = post(client).json()["id"]
    assert_problem(client.post(f"/api/v1/jobs/{job_id}/retry"), 409, "is queued; only a failed or cancelled job")
    client.post(f"/api/v1/jobs/{job_id}/cancel")
    again = client.post(f"/api/v1/jobs/{job_id}/retry")
    assert (again.status_code, again.json()["state"], again.json()["finished_at"]) == (202, "queued", None)
    assert_problem(client.post("/api/v1/jobs/999/retry"), 404, "no job 999")


def test_a_job_says_for_whom_it_is_and_how_urgent(client: TestClient) -> None:
    job = client.post("/api/v1/jobs?submitter=Ada%20L.&priority=7", json=SPEC).json()
    assert (job["submitter"], job["priority"]) == ("Ada L.", 7)
    assert post(client).json()["submitter"] == "anonymous"
    assert_problem(client.post("/api/v1/jobs?priority=101", json=SPEC), 422, "query.priority")
    assert_problem(client.post("/api/v1/jobs?submitter=%3Cb%3E", json=SPEC), 422, "query.submitter")


def test_the_workers_are_listed(client: TestClient, database: Database) -> None:
    assert client.get("/api/v1/workers").json() == []
    job_id = post(client).json()["id"]
    with database.writing() as session:
        workers.record_heartbeat(session, "h/1", host="h", device="CPU")
        workers.record_heartbeat(session, "h/2", host="h", device="GPU", is_draining=True)
        workers.record_heartbeat(session, "h/3", host="h", device="GPU", problem="its disk is full")
        jobs.claim(session, worker="h/1", lease=timedelta(seconds=90))
    first, second, third = client.get("/api/v1/workers").json()
    assert (third["state"], third["problem"]) == ("stuck", "its disk is full")
    assert (first["name"], first["state"], first["job_id"], first["device"]) == ("h/1", "busy", job_id, "CPU")
    assert (second["name"], second["state"], second["job_id"]) == ("h/2", "draining", None)


def test_pages_of_jobs_are_followed_by_cursor(client: TestClient) -> None:
    sent = [post(client).json()["id"] for _ in range(5)]
    seen, cursor = [], ""
    while True:
        page = client.get(f"/api/v1/jobs?limit=2{cursor}").json()
        seen += [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == sent[::-1]


def test_an_idempotency_key_is_honored(client: TestClient) -> None:
    first = post(client, **{"Idempotency-Key": "abc"})
    # The same spec in other words: a default written out, another order of keys.
    shuffled = dict(reversed([item for item in SPEC.items() if item[0] != "seed"]))
    again = post(client, shuffled, **{"Idempotency-Key": "abc"})
    assert (again.status_code, again.json()) == (202, first.json())
    assert_problem(post(client, SPEC | {"seed": 1}, **{"Idempotency-Key": "abc"}), 409, "used for another job")


@either_database
@pytest.mark.parametrize(
    ("change", "location", "says"),
    [
        ({"architecture": "smal_cnn"}, "body.architecture", "did you mean 'small_cnn' or"),
        ({"dataset": "imagnet"}, "body.dataset", "unknown dataset 'imagnet'; did you mean 'imagenet'?"),
        ({"learning_rate": 1}, "body.learning_rate", "unknown field; remove it, or correct its name."),
        ({"threat_model": {"epsilon": 0}}, "body.threat_model.epsilon", "greater than 0"),
        ({"threat_model": {"epsilon": -1}}, "body.threat_model.epsilon", "greater than 0"),
        ({"threat_model": {"epsilon": 1.5}}, "body.threat_model", "wider than the pixel range"),
        ({"batch_size": 0}, "body.batch_size", "greater than or equal to 1"),
        ({"objective": {"loss": "gkl", "beta": 1}}, "body.objective.beta", "unknown field"),
        ({"objective": {"loss": "dlr"}}, "body.objective", "'trades', 'dkl', 'ikl', 'gkl'"),
        ({"kind": "destroy"}, "body", "'train', 'distill', 'evaluate'"),
    ],
)
def test_bad_specs_say_where_and_what(client: TestClient, change: dict[str, Any], location: str, says: str) -> None:
    problem = assert_problem(post(client, SPEC | change), 422, says)
    assert [error.location for error in problem.errors] == [location]
    assert client.get("/api/v1/jobs").json()["jobs"] == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(client: TestClient, number: str) -> None:
    body = json.dumps(SPEC).replace('"epsilon": 0.2', f'"epsilon": {number}')
    response = client.post("/api/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert_problem(response, 422, "body.threat_model.epsilon: ")


def test_bodies_that_are_no_spec_are_refused(client: TestClient) -> None:
    json_type = {"Content-Type": "application/json"}
    assert_problem(client.post("/api/v1/jobs", content="{", headers=json_type), 422, "the body is not JSON")
    assert_problem(client.post("/api/v1/jobs", content="[]", headers=json_type), 422, "body: ")
    assert_problem(client.post("/api/v1/jobs", content="\xff".encode("latin1"), headers=json_type), 400, "")
    assert_problem(client.post("/api/v1/jobs"), 422, "body: field required")
    deep = "[" * 100_000
    assert client.post("/api/v1/jobs", content=deep, headers=json_type).status_code in (400, 422)
    huge = json.dumps(SPEC | {"name": "x" * 10_000_000})
    assert_problem(client.post("/api/v1/jobs", content=huge, headers=json_type), 413, "")
    assert client.get("/api/v1/jobs").json()["jobs"] == []


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/api/v1/jobs/7", 404, "There is no job 7."),
        ("GET", "/api/v1/jobs/seven", 422, "path.job_id"),
        ("GET", "/api/v1/jobs/0", 422, "path.job_id"),
        ("GET", f"/api/v1/jobs/{2**63}", 422, "path.job_id"),
        ("GET", f"/api/v1/jobs/{2**63 - 1}", 404, "There is no job"),
        ("POST", "/api/v1/jobs/7/cancel", 404, "There is no job 7."),
        ("GET", "/api/v1/jobs/7/events", 404, "There is no job 7."),
        ("GET", "/api/v1/jobs/7/log", 404, "There is no job 7."),
        ("GET", "/api/v1/jobs?state=done", 422, "query.state"),
        ("GET", "/api/v1/jobs?limit=0", 422, "query.limit"),
        ("GET", "/api/v1/leaderboards/digits/Linf", 404, "There is no leaderboard digits/Linf"),
        ("GET", "/api/v1/leaderboards/digits/a%00b", 422, "path.threat_model"),
        ("GET", "/api/v1/models/3", 404, "There is no model 3."),
        ("GET", "/api/v1/recipes/digit", 404, "did you mean 'digits'"),
        ("GET", "/api/v1/nothing", 404, "There is nothing at /api/v1/nothing"),
        ("DELETE", "/api/v1/jobs", 405, "DELETE is not allowed at /api/v1/jobs"),
    ],
)
def test_wrong_addresses_have_the_same_shape(
    client: TestClient, method: str, path: str, status: int, says: str
) -> None:
    assert_problem(client.request(method, path), status, says)


def test_a_failure_of_the_service_has_it_too(settings: Settings, tmp_path: Path) -> None:
    """A database without its schema."""
    broken = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'empty.sqlite3'}"})
    with serving(broken, raise_server_exceptions=False) as client:
        away = client.get("/api/v1/jobs")
        assert_problem(away, 503, "The database cannot be used at the moment")
        assert away.headers["retry-after"] == "5"
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert "gklbench migrate" in ready.json()["parts"]["database"]
        assert ready.json()["workers"] == "unknown: the database cannot be used"


@either_database
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1"}, 202),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1"}, 202),
        ({}, 202),
    ],
)
def test_pages_of_other_sites_can_not_act_here(client: TestClient, headers: dict[str, str], status: int) -> None:
    job_id = post(client).json()["id"]
    assert client.post(f"/api/v1/jobs/{job_id}/cancel", headers=headers).status_code == status
    if status == 403:
        assert_problem(post(client, **headers), 403, "a page of another site")
        assert client.get("/api/v1/jobs", headers=headers).status_code == 200


@either_database
def test_what_is_the_same_site_by_another_spelling_may_act(client: TestClient) -> None:
    for host, origin in (("localhost:80", "http://localhost"), ("LOCALHOST", "http://localhost:80")):
        assert post(client, Host=host, Origin=origin).status_code == 202
    refused = post(client, Host="127.0.0.1:8000", Origin="http://bench.lab")
    problem = assert_problem(refused, 403, "(of http://bench.lab, for 127.0.0.1:8000)")
    assert "proxy_set_header Host $http_host" in problem.detail


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("body", ["[" * 100_000, '{"a":' * 100_000, "[" * 5000 + "]" * 5000])
def test_json_that_is_too_deep_is_refused(client: TestClient, body: str) -> None:
    answer = client.post("/api/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert_problem(answer, 422, "too many levels deep")


def test_catalog_and_health(client: TestClient) -> None:
    assert {a["name"] for a in client.get("/api/v1/architectures").json()} == ARCHITECTURES.keys()
    assert client.get("/api/v1/datasets").json()[0]["image_shape"] == [1, 8, 8]
    recipes = client.get("/api/v1/recipes").json()
    assert recipes["digits"] == SPEC
    assert {each["kind"] for each in recipes.values()} == {"train", "distill"}
    assert client.get("/api/v1/recipes/digits-distill").json() == recipes["digits-distill"]
    assert client.get("/api/v1/recipes/digits").json() == SPEC
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {
        "ready": True,
        "parts": dict.fromkeys(("database", "broker", "store"), "ok"),
        "workers": "none was heard of: start one with 'gklbench worker'",
        "relay": "none was heard of: start one with 'gklbench relay'",
    }


def test_readiness_tells_of_workers_and_relay(service: Service, database: Database) -> None:
    stopping = Event()
    relay = Thread(target=Relay(service).run, args=(stopping,))
    relay.start()
    until(lambda: relay_is_running(service.settings))
    with database.writing() as session:
        workers.record_heartbeat(session, "h/1", host="h", device="CPU")
        workers.record_heartbeat(session, "h/2", host="h", device="CPU", is_draining=True)
        workers.record_heartbeat(session, "h/3", host="h", device="CPU", problem="its disk is full")
        workers.record_heartbeat(session, "h/4", host="h", device="CPU")
    with serving(service.settings) as client:
        answer = client.get("/readyz").json()
        assert (answer["workers"], answer["relay"]) == ("1 draining, 2 idle, 1 stuck", "ok")
        with Redis.from_url(service.settings.broker_url) as broker:
            assert 0 < int(broker.ttl("gklbench:relay")) <= 60, "one that is killed is missed by then"
        # One that stops in order says so.
        stopping.set()
        relay.join()
        with database.writing() as session:
            session.execute(update(WorkerRow).values(heard_at=datetime(2026, 1, 1, tzinfo=UTC)))
        # What was seen holds for a second.
        client.app.state.readiness = Readiness(service)
        answer = client.get("/readyz").json()
        assert answer["ready"]
        assert answer["workers"].startswith("none was heard of")
        assert answer["relay"].startswith("none was heard of")


@pytest.mark.system
def test_readiness_says_which_part_is_missing(settings: Settings) -> None:
    away = settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    with serving(away) as client:
        response = client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["parts"] == {
            "database": "ok",
            "broker": "does not answer: ConnectionError",
            "store": "ok",
        }
        assert response.json()["relay"] == "unknown: the broker does not answer"
        # A broker outage loses no job: it is accepted, and announced when the broker is back.
        assert post(client).status_code == 202


def events(text: str) -> list[dict[str, str]]:
    """The fields of each server-sent event."""
    blocks = [block for block in text.split("\n\n") if block.strip() and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


def test_events_are_streamed_to_the_last_state_and_resumed(client: TestClient, database: Database) -> None:
    job_id = post(client).json()["id"]
    client.post(f"/api/v1/jobs/{job_id}/cancel")
    stream = client.get(f"/api/v1/jobs/{job_id}/events")
    assert stream.headers["content-type"].startswith("text/event-stream")
    found = events(stream.text)
    assert [(e["event"], json.loads(e["data"])["state"]) for e in found] == [
        ("state", "queued"),
        ("state", "cancelled"),
    ]
    rest = client.get(f"/api/v1/jobs/{job_id}/events", headers={"Last-Event-ID": found[0]["id"]})
    assert events(rest.text) == found[1:]
    assert_problem(
        client.get(f"/api/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "x"}), 422, "header.last-event-id"
    )


def test_a_log_is_read_from_any_byte(client: TestClient, service: Service) -> None:
    job_id = post(client).json()["id"]
    log = client.get(f"/api/v1/jobs/{job_id}/log")
    assert (log.text, log.headers["x-log-size"]) == ("", "0")
    with service.database.writing() as session:
        job_log.append(session, job_id, "first\nsecond ✓\n".encode(), max_bytes=1000)
    log = client.get(f"/api/v1/jobs/{job_id}/log")
    assert log.text == "first\nsecond ✓\n"
    assert log.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.get(f"/api/v1/jobs/{job_id}/log?offset=6").text == "second ✓\n"
    assert client.get(f"/api/v1/jobs/{job_id}/log?offset=999").text == ""


def test_the_document_describes_it_and_its_page_needs_no_internet(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    create = document["paths"]["/api/v1/jobs"]["post"]
    assert create["requestBody"]["content"]["application/json"]["examples"]["digits"]["value"]["dataset"] == "digits"
    assert PROBLEM_JSON in create["responses"]["4XX"]["content"]
    page = client.get("/api").text
    assert "http://" not in page
    assert "https://" not in page
    for path in ("/swagger/swagger-ui-bundle.js", "/swagger/swagger-ui.css"):
        assert path in page
        assert client.get(path).status_code == 200


def send(client: TestClient, content: bytes) -> httpx2.Response:
    return client.post("/api/v1/weights", content=content, headers={"Content-Type": "application/octet-stream"})


def test_weights_are_sent_once(client: TestClient, store: ArtifactStore) -> None:
    content = weights_of("small_cnn", "digits")
    first = send(client, content)
    assert first.status_code == 201, first.text
    upload = first.json()
    assert upload["sha256"] == hashlib.sha256(content).hexdigest()
    assert (upload["format"], upload["size_bytes"]) == ("safetensors", len(content))
    assert store.path(upload["sha256"]).read_bytes() == content
    again = send(client, content).json()
    assert again.pop("created_at") > upload.pop("created_at"), "and are young again"
    assert again == upload
    assert client.get(first.headers["location"]).json().items() > upload.items()
    assert_problem(client.get(f"/api/v1/weights/{'0' * 64}"), 404, "No weights with sha256")
    # PostgreSQL refuses such a text; it must not get there.
    assert_problem(client.get("/api/v1/weights/%00"), 422, "path.sha256")
    spec = {
        "kind": "evaluate",
        "name": "Sent",
        "dataset": "digits",
        "architecture": "small_cnn",
        "weights": upload["sha256"],
        "evaluation": {"threat_model": {"norm": "Linf", "epsilon": 0.2}},
    }
    assert post(client, spec).status_code == 202


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html>Too many users have viewed this file", "The file is an HTML page, not weights"),
        (b"", "neither safetensors nor a state dict"),
        (b"hello", "neither safetensors nor a state dict"),
    ],
)
def test_what_is_no_weights_is_refused_and_leaves_nothing(
    client: TestClient, store: ArtifactStore, settings: Settings, content: bytes, says: str
) -> None:
    assert_problem(send(client, content), 422, says.replace("The file", "the file"))
    assert [path for path in settings.data_dir.rglob("*") if path.is_file()] == []


def test_weights_that_are_too_large_are_refused(settings: Settings) -> None:
    small = settings.model_copy(update={"max_weights_bytes": 4096, "max_body_bytes": 1024})
    with serving(small) as client:
        fits = save({"weight": np.zeros(1000, np.float32)})
        assert send(client, fits).status_code == 201
        assert_problem(send(client, b"PK\x03\x04" + bytes(5000)), 413, "larger than the 4096 bytes")
        assert_problem(client.post("/api/v1/jobs", content=bytes(2000)), 413, "larger than the 1024 bytes")


def test_an_evaluation_without_a_certificate_says_so(client: TestClient, database: Database) -> None:
    from tests.app.boards.test_results import measure, train

    measure(database, train(database, "a"), robust=100, provisional=True)
    evaluation = client.get("/api/v1/models/1").json()["evaluations"][0]
    assert client.get(f"/api/v1/evaluations/{evaluation['id']}").json() == evaluation
    assert evaluation["is_provisional"]
    for part in ("certificate", "points"):
        response = client.get(f"/api/v1/evaluations/{evaluation['id']}/{part}")
        assert_problem(response, 404, "has no certificate: its verdict is still provisional")
    assert_problem(client.get("/api/v1/evaluations/99"), 404, "There is no evaluation 99.")
