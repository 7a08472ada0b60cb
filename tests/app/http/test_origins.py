"""Pages of other origins: which may call the API, and that a login is never theirs to use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.core.settings import Settings
from app.db.database import Database
from app.main import create_app
from tests.specs import tiny_train_spec
from tests.tokens import bearer, token_of

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

LAB = {"Origin": "https://lab.example", "Sec-Fetch-Site": "cross-site"}
SPEC = tiny_train_spec().model_dump(mode="json")
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    changes = {"access": "tokens", "allowed_origins": "https://lab.example, http://127.0.0.1:3000"}
    with TestClient(create_app(settings.model_copy(update=changes)), base_url="https://bench.example") as client:
        yield client


def test_a_page_of_a_named_origin_calls_the_api_with_a_token(client: TestClient, database: Database) -> None:
    asked = client.options("/api/v1/jobs", headers=LAB | ASKS)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == LAB["Origin"]
    token = bearer(token_of(database, "Ada"))
    sent = client.post("/api/v1/jobs", json=SPEC, headers=LAB | token)
    assert sent.status_code == 202
    assert sent.headers["access-control-allow-origin"] == LAB["Origin"]
    assert "access-control-allow-credentials" not in sent.headers
    assert "Origin" in sent.headers["vary"]
    readable = {name.strip() for name in sent.headers["access-control-expose-headers"].split(",")}
    assert {"Location", "X-Log-Size", "Upload-Offset", "Retry-After", "ETag", "Tus-Resumable"} <= readable
    # What it is refused it can read too.
    assert client.post("/api/v1/jobs", json=SPEC, headers=LAB).headers["access-control-allow-origin"]
    assert client.get("/api/v1/jobs/99", headers=LAB).headers["access-control-allow-origin"]


def test_pages_and_other_origins_are_not_shared(client: TestClient, database: Database) -> None:
    secret = token_of(database, "Ada")
    other = LAB | {"Origin": "https://lab.example.evil"}
    assert "access-control-allow-origin" not in client.options("/api/v1/jobs", headers=other | ASKS).headers
    assert client.post("/api/v1/jobs", json=SPEC, headers=other | bearer(secret)).status_code == 403
    assert client.post("/login", data={"token": secret}, headers=LAB).status_code == 403
    for path in ("/", "/login", "/healthz", "/openapi.json"):
        assert "access-control-allow-origin" not in client.get(path, headers=LAB).headers
    # A cookie that comes along all the same, as from another port of one host, is not enough.
    client.post("/login", data={"token": secret}, follow_redirects=False)
    assert client.post("/api/v1/jobs", json=SPEC, headers=LAB).status_code == 403


def test_without_the_setting_nobody_is_let_in(settings: Settings) -> None:
    with TestClient(create_app(settings), base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        answer = client.get("/api/v1/jobs", headers=LAB)
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origin", ["*", "lab.example", "https://lab.example/", "https://Lab.example", "null", "https://*.x"]
)
def test_what_is_no_origin_is_refused(origin: str, database_url: str) -> None:
    with pytest.raises(ValidationError, match="GKLBENCH_ALLOWED_ORIGINS holds"):
        Settings(allowed_origins=f"https://lab.example, {origin}")
