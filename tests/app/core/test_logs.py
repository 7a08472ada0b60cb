"""What the processes log: whole, joined by ids, and free of what people sent."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import jobs
from app.core import logs
from app.core.settings import Settings
from app.db.database import Database
from app.main import create_app
from app.store import ArtifactStore
from tests.app.routes.test_api import SPEC, assert_problem
from tests.local import serving
from worker import run_log
from worker.tasks import Worker


class Lines(logging.StreamHandler[io.StringIO]):
    """What is logged meanwhile, as JSON lines."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.setFormatter(logs.formatter("json"))

    def read(self, logger: str | None = None) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in found if logger in (None, line["logger"])]


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    level = root.level
    # The client that asks in these tests runs in the same process; what it logs is its own affair.
    handler.addFilter(lambda record: not record.name.startswith("httpx2"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def test_a_request_is_one_line_without_what_was_sent(client: TestClient, lines: Lines) -> None:
    headers = {"X-Request-ID": "from-a-proxy.7", "Authorization": "Bearer secret"}
    sent = client.post("/api/v1/jobs?submitter=secret", json=SPEC | {"name": "secret"}, headers=headers)
    assert sent.headers.get_list("x-request-id") == ["from-a-proxy.7"]
    access = lines.read("app.http.access")
    assert [{k: line[k] for k in ("method", "path", "status", "request_id", "level")} for line in access] == [
        {"method": "POST", "path": "/api/v1/jobs", "status": 202, "request_id": "from-a-proxy.7", "level": "info"}
    ]
    assert access[0]["milliseconds"] > 0
    (told,) = lines.read("app.routes.jobs")
    assert (told["job_id"], told["request_id"]) == (sent.json()["id"], "from-a-proxy.7")
    assert "secret" not in lines.stream.getvalue()


def test_each_request_has_an_id_of_its_own(client: TestClient, lines: Lines) -> None:
    made = [client.get("/api/v1/workers").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    for insane in ("a b", "x" * 65, 'id"}', "a\tb"):
        answer = client.get("/api/v1/workers", headers={"X-Request-ID": insane}).headers["x-request-id"]
        assert answer != insane
        made.append(answer)
    assert [line["request_id"] for line in lines.read("app.http.access")] == made


def test_health_and_files_of_pages_are_not_told_of(client: TestClient, lines: Lines) -> None:
    for path in ("/healthz", "/readyz", "/static/icon.svg", "/swagger/swagger-ui.css"):
        assert client.get(path).status_code == 200
    assert lines.read("app.http.access") == []


def test_a_failure_is_found_by_the_id_in_its_answer(settings: Settings, lines: Lines) -> None:
    app = create_app(settings)

    @app.get("/api/broken")
    def broken() -> None:
        raise RuntimeError("first line\nsecond line")

    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get("/api/broken?token=secret")
    request_id = response.headers["x-request-id"]
    problem = assert_problem(response, 500, request_id)
    assert problem.request_id == request_id
    assert "first line" not in response.text
    (failure,) = lines.read("app.http.problems")
    assert failure["request_id"] == request_id
    assert "RuntimeError: first line\nsecond line" in failure["exception"]
    (access,) = lines.read("app.http.access")
    assert (access["status"], access["request_id"]) == (500, request_id)
    assert "secret" not in lines.stream.getvalue()


def test_a_lost_database_tells_nothing_that_was_sent(settings: Settings, tmp_path: Path, lines: Lines) -> None:
    broken = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'empty.sqlite3'}"})
    with serving(broken, raise_server_exceptions=False) as client:
        response = client.post("/api/v1/jobs", json=SPEC, headers={"Idempotency-Key": "secret"})
    assert assert_problem(response, 503, "database").request_id == response.headers["x-request-id"]
    assert lines.read("app.http.problems")
    assert "secret" not in lines.stream.getvalue()


def test_a_path_writes_no_lines_of_its_own(client: TestClient) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.formatter("text"))
    logger = logging.getLogger("app.http.access")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        client.get("/nothing%0AINFO forged%1B[2J")
        logger.info("from a library\nthat writes\x1b two lines")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    first, second = stream.getvalue().splitlines()
    assert "INFO app.http.access: GET /nothing%0AINFO%20forged%1B%5B2J 404 [" in first
    assert r"from a library\nthat writes\x1b two lines" in second


def test_what_a_run_is_about_is_in_each_of_its_lines(
    settings: Settings, database: Database, store: ArtifactStore, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in those of its threads: here of the one that reads a runner which says what is no message."""
    with serving(settings) as client:
        spec = SPEC | {"dataset": "cifar10"}
        job_id = client.post("/api/v1/jobs", json=spec).json()["id"]
    # Its log cannot be written, which the thread that does so says.
    refuse = (
        "CREATE TRIGGER never BEFORE INSERT ON job_logs BEGIN SELECT RAISE(ABORT, 'refused'); END"
        if database.is_sqlite
        else "ALTER TABLE job_logs ADD CONSTRAINT never CHECK (start < 0)"
    )
    with database.engine.begin() as connection:
        connection.exec_driver_sql(refuse)
    # In a second, a run that fails at once would be over.
    monkeypatch.setattr(run_log, "_PAUSE_SECONDS", 0.001)
    Worker(settings, database, store, "here", Event()).run_next()
    told = [line for line in lines.read() if line["logger"].startswith("worker.")]
    assert {(line.get("job_id"), line.get("attempt")) for line in told} == {(job_id, 1)}
    assert sum("cannot be written" in line["event"] for line in told) >= 2
    with database.reading() as session:
        assert jobs.get(session, job_id).state == "failed"
    logging.getLogger("worker.tasks").info("afterwards")
    assert "job_id" not in lines.read("worker.tasks")[-1]


def test_every_line_of_a_process_is_json() -> None:
    code = """
import logging, warnings
from app.core import logs
logs.configure("json")
logging.getLogger("a").info("%s", {"quote": '"', "line": chr(10), "nan": float("nan")})
warnings.warn("a warning")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("b").exception("it failed")
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    first, warning, failed = [json.loads(line) for line in done.stderr.splitlines()]
    assert (first["logger"], first["level"], "nan" in first["event"]) == ("a", "info", True)
    assert (warning["logger"], "a warning" in warning["event"]) == ("py.warnings", True)
    assert "ZeroDivisionError" in failed["exception"]
    assert done.stdout == ""
