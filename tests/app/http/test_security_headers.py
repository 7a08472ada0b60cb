"""What every answer tells browsers, and requests that do not come on."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.http.security_headers import CONTENT_SECURITY_POLICY
from app.main import create_app
from tests.cluster import free_port, until
from tests.databases import either_database

WEB = Path(__file__).parents[3] / "app" / "web"


@either_database
@pytest.mark.parametrize(
    "path",
    ["/", "/jobs", "/api/v1/jobs", "/nothing", "/api/v1/jobs/999", "/api", "/docs/", "/static/style.css", "/healthz"],
)
def test_every_answer_carries_them(client: TestClient, path: str) -> None:
    headers = client.get(path, headers={"Accept": "text/html"}).headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert "strict-transport-security" not in headers


def test_over_tls_browsers_are_told_to_stay_there(visitor: TestClient) -> None:
    assert "max-age=" in visitor.get("/").headers["strict-transport-security"]


def test_nothing_inline_is_allowed_and_nothing_inline_is_there() -> None:
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY, "no other site"
    for path in WEB.rglob("*.html"):
        text = path.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)", text), path
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", text), path


def test_forms_that_change_something_carry_a_csrf_token() -> None:
    for path in WEB.rglob("*.html"):
        for form in re.findall(r'<form method="post".*?</form>', path.read_text(), re.DOTALL):
            if 'action="/login"' not in form:
                assert "csrf" in form, path


@pytest.fixture
def slow_address(settings: Settings) -> Iterator[tuple[str, int]]:
    """A real server that waits half a second for a body to come on."""
    app = create_app(settings.model_copy(update={"body_timeout_seconds": 0.5}))
    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    yield "127.0.0.1", server.config.port
    server.should_exit = True
    thread.join()


def answer_to(address: tuple[str, int], *parts: bytes, pause: float = 0.0) -> bytes:
    with socket.create_connection(address, timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


@pytest.mark.parametrize("path", [b"/api/v1/jobs", b"/api/v1/weights"])
def test_a_body_that_stands_still_is_not_waited_for(
    slow_address: tuple[str, int], path: bytes, settings: Settings
) -> None:
    head = b"POST " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    started = time.monotonic()
    answer = answer_to(slow_address, head + b'Content-Length: 1000\r\n\r\n{"kind":')
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b"application/problem+json" in answer
    assert b"stalled for 0.5 seconds, or came too slowly; send it again" in answer
    assert time.monotonic() - started < 10
    assert list(settings.data_dir.rglob(".incoming-*")) == []


def test_one_that_comes_slowly_is(slow_address: tuple[str, int]) -> None:
    head = b"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    answer = answer_to(
        slow_address, head + b"Content-Length: 6\r\n\r\n", *(b"{", b"}", b" ", b" ", b" ", b" "), pause=0.2
    )
    assert answer.startswith(b"HTTP/1.1 422"), answer


def test_an_event_stream_outlives_it(slow_address: tuple[str, int], client: TestClient) -> None:
    from tests.specs import tiny_train_spec

    job = client.post("/api/v1/jobs", json=tiny_train_spec().model_dump(mode="json")).json()
    path = f"/api/v1/jobs/{job['id']}/events".encode()
    timer = threading.Timer(1.5, lambda: client.post(f"/api/v1/jobs/{job['id']}/cancel"))
    timer.start()
    answer = answer_to(slow_address, b"GET " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    timer.join()
    assert b"cancelled" in answer
