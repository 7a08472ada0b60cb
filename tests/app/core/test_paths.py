"""A service under a path of a name, behind proxies that hand the path on and such that take it off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.boards import robustbench
from app.core.settings import _OWN_PATHS, Settings
from app.db.database import Database
from app.http.access import COOKIE
from app.main import create_app
from gkl.answers import Scope
from tests.app.boards.test_entries import ENTRIES
from tests.app.boards.test_robustbench import LINF, contents
from tests.local import application
from tests.specs import tiny_train_spec
from tests.tokens import bearer, token_of

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

ROOT = "/bench"
PAGES = (
    *(
        "/",
        "/jobs",
        "/jobs/1",
        "/workers",
        "/submit/train",
        "/submit/evaluate",
        "/leaderboards/cifar10/Linf",
        "/entries/1",
    ),
    *(
        "/compare?entries=1&entries=2",
        "/flags",
        "/me",
        "/audit",
        "/login",
        "/api",
        "/nowhere",
        "/leaderboards/cifar10/Linf?q=x",
    ),
)
_ADDRESSES = re.compile(r'(?:href|src|action|data-events|data-upload|data-openapi)="([^"]*)"')


@pytest.fixture(params=["handed on", "taken off"])
def before(request: pytest.FixtureRequest) -> str:
    """What stands before a path when it arrives."""
    return ROOT if request.param == "handed on" else ""


@pytest.fixture
def admin(settings: Settings, database: Database) -> Iterator[TestClient]:
    files = [(f"cifar10/Linf/{name}.json", contents(LINF | {"name": name})) for name in ENTRIES]
    robustbench.import_files(database, files)
    headers = bearer(token_of(database, "Ada", Scope.ADMIN))
    with (
        application(settings.model_copy(update={"access": "tokens", "root_path": ROOT})) as app,
        TestClient(app, base_url="https://lab.example", headers=headers, follow_redirects=False) as client,
    ):
        yield client


def test_every_address_on_every_page_is_under_the_path(admin: TestClient, before: str) -> None:
    admin.post(f"{before}/api/v1/jobs", json=tiny_train_spec().model_dump(mode="json"))
    asked = set()
    for path in PAGES:
        page = admin.get(before + path, headers={"Accept": "text/html"})
        assert page.status_code == (404 if path == "/nowhere" else 200), path
        for address in _ADDRESSES.findall(page.text):
            if address.startswith(("?", "#", "https://")):
                continue
            assert address.startswith(f"{ROOT}/"), f"{path}: {address}"
            asked.add(address.replace("&amp;", "&"))
    # These are sent to, with something.
    asked -= {
        f"{ROOT}/compare",
        f"{ROOT}/logout",
        f"{ROOT}/jobs/1/cancel",
        f"{ROOT}/api/v1/jobs/1/events",
        f"{ROOT}/api/v1/uploads",
    }
    for address in asked:
        if not address.endswith(("/withdrawal", "/rank")):
            answer = admin.get(before + address.removeprefix(ROOT))
            # The documentation may not be built where this runs; its addresses then say how to build it.
            is_unbuilt = address.startswith(f"{ROOT}/docs/") and "make docs" in answer.text
            assert answer.status_code in (200, 303) or is_unbuilt, address
            assert answer.headers.get("location", ROOT).startswith(ROOT)


def test_answers_of_the_api_name_the_path(admin: TestClient, before: str) -> None:
    sent = admin.post(f"{before}/api/v1/jobs", json=tiny_train_spec().model_dump(mode="json"))
    assert sent.headers["location"] == f"{ROOT}/api/v1/jobs/1"
    assert admin.get(before + "/api/v1/jobs/1").json()["id"] == 1
    begun = admin.post(f"{before}/api/v1/uploads", headers={"Upload-Length": "9"})
    assert begun.headers["location"].startswith(f"{ROOT}/api/v1/uploads/")
    address = before + begun.headers["location"].removeprefix(ROOT)
    assert admin.head(address).headers["upload-offset"] == "0"
    assert admin.get(f"{before}/openapi.json").json()["servers"] == [{"url": ROOT}]
    assert f"{ROOT}/api lists" in admin.get(f"{before}/api/v1/nowhere").json()["detail"]
    assert admin.get(f"{before}/api/v1/jobs").headers["cache-control"] == "private, no-cache"
    slashed = admin.get(f"{before}/jobs/")
    assert urlsplit(slashed.headers["location"]).path == f"{ROOT}/jobs"
    too_large = admin.post(f"{before}/api/v1/jobs", content=b"x" * 2_000_000)
    assert too_large.status_code == 413
    assert "1048576" in too_large.json()["detail"]
    # One who knows nothing of the path, such as a health check.
    assert admin.get("/healthz").status_code == 200


def test_a_login_is_for_the_path_alone(admin: TestClient, database: Database, before: str) -> None:
    del admin.headers["authorization"]
    asked = admin.get(f"{before}/audit", headers={"Accept": "text/html"})
    assert asked.headers["location"] == f"{ROOT}/login?next=%2Fbench%2Faudit"
    secret = token_of(database, "Bob", Scope.ADMIN)
    for wanted, leads_to in (("/bench/audit", "/bench/audit"), ("/other", "/bench/"), ("//evil.example", "/bench/")):
        admin.cookies.clear()
        done = admin.post(f"{before}/login", data={"token": secret, "next": wanted})
        assert done.headers["location"] == leads_to
    assert f"Path={ROOT};" in done.headers["set-cookie"]
    csrf = re.search(r'name="csrf" value="([0-9a-f]+)"', admin.get(f"{ROOT}/audit").text)
    assert csrf is not None
    out = admin.post(f"{ROOT}/logout", data={"csrf": csrf[1]})
    assert (out.headers["location"], admin.cookies.get(COOKIE)) == (f"{ROOT}/", None)


@pytest.mark.parametrize("path", ["bench", "/bench/", "/", "//bench", "/a/../b", "/a b", "/jobs", "/api/bench", "/a?b"])
def test_what_is_no_path_to_serve_under_is_refused(path: str, database_url: str) -> None:
    with pytest.raises(ValidationError, match="GKLBENCH_ROOT_PATH must begin with a slash"):
        Settings(root_path=path)


def test_the_own_paths_are_those_of_the_routes(settings: Settings) -> None:
    paths = {getattr(route, "path", None) or "" for route in create_app(settings).routes}
    paths |= {route.path for route in iter_route_contexts(create_app(settings).routes) if route.path}
    assert {path.split("/")[1] for path in paths if path.startswith("/")} - {""} == {name for (name,) in _OWN_PATHS}
    assert Path(ROOT).name not in _OWN_PATHS
