"""HEAD is answered wherever GET is, with the same head and without what GET would do after it."""

from __future__ import annotations

import re

import httpx2
import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.http.head_requests import methods_at
from tests.app.routes.test_api import post
from tests.servers import served
from tests.specs import tiny_train_spec

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_each_route_with_get_has_head(client: TestClient) -> None:
    post(client)
    values = {"job_id": "1", "kind": "train", "dataset": "digits", "name": "digits", "threat_model": "Linf"}
    tried = 0
    for route in iter_route_contexts(client.app.routes):  # type: ignore[attr-defined]
        if not route.path or "GET" not in (route.methods or ()) or route.path.endswith("/events"):
            continue
        path = re.sub(r"\{(\w+)[^}]*\}", lambda found: values.get(found[1], "7"), route.path)
        got, head = client.get(path, follow_redirects=False), client.head(path, follow_redirects=False)
        assert head.status_code == got.status_code, path
        assert head.content == b""
        ignored = ("x-request-id", "content-length")
        assert {k: v for k, v in head.headers.items() if k not in ignored}.keys() >= {
            k: v for k, v in got.headers.items() if k not in ignored
        }.keys(), path
        tried += 1
    assert tried > 40


def test_a_stream_is_not_opened_and_a_server_goes_on(settings: Settings) -> None:
    with served(settings) as url, httpx2.Client(base_url=url, timeout=5) as client:
        client.post("/api/v1/jobs", json=tiny_train_spec().model_dump(mode="json"))
        for _ in range(3):
            head = client.head("/api/v1/jobs/1/events")
            assert head.status_code == 200
            assert head.headers["content-type"].startswith("text/event-stream")
        assert client.head("/api/v1/jobs/2/events").status_code == 404
        assert client.head("/").headers["content-length"] == client.get("/").headers["content-length"]
        assert client.head("/static/style.css").status_code == 200
        assert client.get("/api/v1/jobs/1").status_code == 200
        metrics = client.get("/metrics").text
        assert 'method="HEAD",route="/api/v1/jobs/{job_id}/events",status="200"' in metrics


def test_where_there_is_no_get_there_is_no_head(client: TestClient) -> None:
    refused = client.head("/api/v1/jobs/1/cancel")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert client.delete("/api/v1/jobs").headers["allow"] == "GET, HEAD, POST"
    assert methods_at(client.app.routes, "/api/v1/uploads/x") >= {"HEAD", "PATCH"}  # type: ignore[attr-defined]
