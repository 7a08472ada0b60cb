"""What is answered where the application hangs."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.http import deadline
from app.http.deadline import AnswerInTime
from app.http.problems import no_answer
from app.web.rendering import error_page
from tests.local import serving


def client(seconds: float = 0.2) -> tuple[TestClient, threading.Event]:
    """A service with a route that hangs until the event is set, in a thread as ours do."""
    app, released = FastAPI(), threading.Event()

    @app.get("/hangs")
    @app.post("/hangs")
    @app.post("/uploads")
    def hangs() -> str:
        released.wait(20)
        return "late"

    @app.get("/healthz")
    async def healthz() -> str:
        return "ok"

    @app.get("/slow-stream")
    async def slow_stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(4):
                yield b"x"
                await asyncio.sleep(seconds / 2)

        return StreamingResponse(parts())

    @app.post("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    @app.get("/fails")
    def fails() -> None:
        raise RuntimeError("as it does without a limit")

    refusal = no_answer(error_page)
    guarded = AnswerInTime(app, re.compile("/uploads"), refusal, seconds)
    return TestClient(guarded, raise_server_exceptions=True), released


def test_a_request_that_hangs_is_answered_and_health_too() -> None:
    asked, released = client()
    with asked:
        for method in ("GET", "POST"):
            answer = asked.request(method, "/hangs")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert answer.json()["code"] == "no_answer"
        assert asked.get("/healthz").text == '"ok"'
        released.set()
        assert asked.get("/hangs").text == '"late"'


def test_where_many_hang_the_next_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "_MOST_LATE", 2)
    asked, released = client()
    with asked:
        for _ in range(2):
            assert asked.get("/hangs").status_code == 503
        assert asked.post("/body", content=b"x").status_code == 503
        assert asked.get("/healthz").status_code == 200
        released.set()
        # As soon as those have come to their end.
        for _ in range(200):
            if asked.post("/body", content=b"x").status_code == 200:
                break
        else:
            pytest.fail("it refuses for ever")


def test_what_comes_and_goes_slowly_is_not_hurried() -> None:
    seconds = 0.2
    asked, released = client(seconds)

    def slow_body() -> Iterator[bytes]:
        for _ in range(4):
            time.sleep(seconds / 2)
            yield b"x"

    with asked:
        assert asked.get("/slow-stream").text == "xxxx"
        assert asked.post("/body", content=slow_body()).json() == 4
        threading.Timer(2 * seconds, released.set).start()
        assert asked.post("/uploads").text == '"late"', "the last piece of a file takes its time"
        with pytest.raises(RuntimeError, match="without a limit"):
            asked.get("/fails")


def test_the_answer_that_there_is_none_is_like_any_other(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the head that every answer has; a page for a browser, a problem for a program."""
    monkeypatch.setattr(deadline, "_MOST_LATE", 0)
    with serving(settings) as client:
        page = client.get("/", headers={"Accept": "text/html"})
        problem = client.get("/api/v1/jobs")
    for answer in (page, problem):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-request-id"]
    assert "does not answer at the moment" in page.text
    assert page.headers["content-type"].startswith("text/html")
    assert problem.json()["request_id"] == problem.headers["x-request-id"]
