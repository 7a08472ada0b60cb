"""Who may do what: tokens, scopes, logins, and that no route forgets to ask."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier

import httpx2
import pytest
from fastapi.routing import RouteContext, iter_route_contexts
from fastapi.testclient import TestClient
from pydantic import ValidationError
from sqlalchemy import update
from starlette.routing import Mount
from typer.testing import CliRunner

from app import jobs
from app.accounts import tokens
from app.accounts.audit import COMMAND_LINE
from app.accounts.tokens import Limits
from app.cli.embedded import EmbeddedService, StartError
from app.cli.main import cli
from app.core.errors import NotFound, Unauthorized, Unprocessable
from app.core.settings import Settings
from app.db.database import Database, database_now
from app.db.tables import LoginSession, Token
from app.http.access import COOKIE, identified
from app.main import create_app
from gkl.answers import Scope
from tests.app.routes.test_api import assert_problem
from tests.databases import either_database
from tests.specs import tiny_train_spec
from tests.tokens import NO_LIMITS, bearer, token_of

SPEC = tiny_train_spec().model_dump(mode="json")
# What needs no token, by design: each with what it gives away.
PUBLIC = {
    "/healthz": "that it lives",
    "/readyz": "which part is missing",
    "/login": "a form",
    "/logout": "nothing",
    "/api": "the API's description",
    "/docs": "where that is",
    "/docs/": "the documentation",
}


# --- routes ------------------------------------------------------------------------------------------------------


def scopes_of(route: RouteContext) -> set[str]:
    """All scopes that its dependencies ask for."""
    found: set[str] = set()
    waiting = [route.dependant]
    while waiting:
        dependant = waiting.pop()
        found |= set(dependant.own_oauth_scopes or [])
        waiting += dependant.dependencies
    return found


def routes(settings: Settings) -> list[RouteContext]:
    """All but the files under /static, /swagger and /docs, and the API's description."""
    found = iter_route_contexts(create_app(settings).routes)
    return [each for each in found if not isinstance(each.original_route, Mount) and each.path != "/openapi.json"]


def test_every_route_demands_its_scope(guarded: Settings) -> None:
    found = routes(guarded)
    assert len(found) > 50
    for route in found:
        scopes = scopes_of(route)
        if route.path in PUBLIC:
            continue
        assert "read" in scopes, f"{route.path} does not ask who reads it"
        if (route.methods or set()) - {"GET", "HEAD"} or "uploads" in route.path:
            assert scopes & {"submit", "admin"}, f"{route.methods} {route.path} changes something for whoever reads"


def test_nobody_can_do_anything_that_needs_a_token_without_one(guarded: Settings, visitor: TestClient) -> None:
    asked = 0
    for route in routes(guarded):
        for method in sorted((route.methods or set()) - {"GET", "HEAD"}):
            if route.path in PUBLIC:
                continue
            path = re.sub(r"\{[^}]*\}", "1", route.path)
            headers = {"Accept": "application/json", "Upload-Length": "1", "Upload-Offset": "0"}
            answer = visitor.request(method, path, headers=headers)
            assert answer.status_code in (401, 422), f"{method} {path}: {answer.status_code}"
            asked += 1
    assert asked >= 15


@pytest.mark.parametrize("scope", list(Scope))
def test_a_scope_allows_what_it_says_and_no_more(visitor: TestClient, database: Database, scope: Scope) -> None:
    headers = bearer(token_of(database, "Ada", scope))
    may_send, may_rule = scope is not Scope.READ, scope is Scope.ADMIN
    assert visitor.get("/api/v1/jobs", headers=headers).status_code == 200
    sent = visitor.post("/api/v1/jobs", json=SPEC, headers=headers)
    assert sent.status_code == (202 if may_send else 403), sent.text
    if not may_send:
        assert_problem(sent, 403, "needs a token with the scope 'submit', and Ada's has 'read'")
    read = visitor.get("/api/v1/audit", headers=headers)
    imported = visitor.post("/api/v1/robustbench/imports", json={"files": {}}, headers=headers)
    assert (read.status_code, imported.status_code) == ((200, 200) if may_rule else (403, 403))


def test_reading_can_be_closed_too(guarded: Settings, database: Database) -> None:
    closed = guarded.model_copy(update={"anonymous_read": False})
    with TestClient(create_app(closed), base_url="https://bench.example") as client:
        problem = assert_problem(client.get("/api/v1/jobs"), 401, "send it as 'Authorization: Bearer gklb_...'")
        assert problem.code == "unauthorized"
        assert client.get("/api/v1/jobs").headers["www-authenticate"] == "Bearer"
        page = client.get("/jobs?state=failed", headers={"Accept": "text/html"}, follow_redirects=False)
        assert page.headers["location"] == "/login?next=%2Fjobs%3Fstate%3Dfailed"
        reader = bearer(token_of(database, "Reader", Scope.READ))
        assert client.get("/api/v1/jobs", headers=reader).status_code == 200
        assert client.get("/healthz").status_code == 200


# --- tokens ------------------------------------------------------------------------------------------------------


def test_a_token_is_kept_as_its_hash_and_its_use_is_noted(visitor: TestClient, database: Database) -> None:
    secret = token_of(database, "Ada")
    with database.reading() as session:
        (row,) = tokens.all_of_them(session)
        assert row.last_used_at is None
        everything = " ".join(str(value) for value in vars(row).values())
    assert secret not in everything
    assert secret.startswith(row.hint)
    assert len(secret) > 2 * len(row.hint)
    visitor.get("/api/v1/jobs", headers=bearer(secret))
    with database.reading() as session:
        used = tokens.all_of_them(session)[0].last_used_at
    assert used is not None
    visitor.get("/api/v1/jobs", headers=bearer(secret))
    with database.reading() as session:
        assert tokens.all_of_them(session)[0].last_used_at == used, "not written with each request"


@pytest.mark.parametrize(
    "wrong", ["gklb_" + "A" * 43, "nonsense", "gklb_", "gklb_" + "é" * 43, "' OR 1=1 --", "x" * 5000]
)
def test_an_unknown_token_is_refused_even_where_everybody_may_read(visitor: TestClient, wrong: str) -> None:
    answer = visitor.get("/api/v1/jobs", headers={"Authorization": f"Bearer {wrong}".encode()})
    assert_problem(answer, 401, "This token is unknown, expired or revoked")


def test_expired_and_revoked_tokens_let_nobody_in(visitor: TestClient, database: Database) -> None:
    ada, bob = token_of(database, "Ada"), token_of(database, "Bob")
    with database.writing() as session:
        tokens.revoke(session, "Bob", by=COMMAND_LINE)
        past = database_now(session) - timedelta(seconds=1)
        session.execute(update(Token).where(Token.name == "Ada").values(expires_at=past))
    for secret in (ada, bob):
        assert visitor.get("/api/v1/jobs", headers=bearer(secret)).status_code == 401


def test_a_rotated_token_overlaps_with_the_old_one(visitor: TestClient, database: Database) -> None:
    old = token_of(database, "Ada", limits=Limits(queued_jobs=3))
    with database.writing() as session:
        new, fresh = tokens.rotate(session, "Ada", overlap=timedelta(hours=1), by=COMMAND_LINE)
        assert (new.max_queued_jobs, new.scope) == (3, Scope.SUBMIT)
    for secret in (old, fresh):
        assert visitor.get("/api/v1/jobs", headers=bearer(secret)).status_code == 200
    with database.writing() as session:
        tokens.rotate(session, "Ada", overlap=timedelta(), by=COMMAND_LINE)
    for secret in (old, fresh):
        assert visitor.get("/api/v1/jobs", headers=bearer(secret)).status_code == 401


def test_names_that_cannot_be(database: Database) -> None:
    token_of(database, "Ada")
    for name in ("Ada", "anonymous", "", " x", "a/b", "<b>", "x" * 101, "Ada\n"):
        with pytest.raises(Unprocessable), database.writing() as session:
            tokens.create(session, name, Scope.READ, lifetime=None, limits=NO_LIMITS, by=COMMAND_LINE)
    with pytest.raises(NotFound, match="no valid token has the name Eve"), database.writing() as session:
        tokens.revoke(session, "Eve", by=COMMAND_LINE)


# --- whose ------------------------------------------------------------------------------------------------------


def test_a_job_is_its_tokens_and_nobody_elses(visitor: TestClient, database: Database) -> None:
    ada, bob, root = (
        bearer(token_of(database, name, scope))
        for name, scope in (("Ada", Scope.SUBMIT), ("Bob", Scope.SUBMIT), ("Root", Scope.ADMIN))
    )
    job = visitor.post("/api/v1/jobs", json=SPEC, headers=ada).json()
    assert job["submitter"] == "Ada"
    forged = visitor.post("/api/v1/jobs?submitter=Ada", json=SPEC, headers=bob)
    assert_problem(forged, 403, "sends jobs as Bob, not as Ada")
    on_behalf = visitor.post("/api/v1/jobs?submitter=Ada", json=SPEC, headers=root)
    assert on_behalf.json()["submitter"] == "Ada"
    pushed = visitor.post("/api/v1/jobs?priority=1", json=SPEC, headers=ada)
    assert_problem(pushed, 403, "nly admins may set a priority above 0")
    assert visitor.post("/api/v1/jobs?priority=-1", json=SPEC, headers=ada).status_code == 202
    assert_problem(visitor.post(f"/api/v1/jobs/{job['id']}/cancel", headers=bob), 403, "is Ada's")
    assert visitor.post(f"/api/v1/jobs/{job['id']}/cancel", headers=ada).json()["state"] == "cancelled"
    assert_problem(visitor.post(f"/api/v1/jobs/{job['id']}/retry", headers=bob), 403, "is Ada's")
    assert visitor.post(f"/api/v1/jobs/{job['id']}/retry", headers=root).status_code == 202
    trail = visitor.get("/api/v1/audit", headers=root).json()["records"]
    told = [(record["actor"], record["action"], record["subject"]) for record in trail]
    mine = f"job {job['id']}"
    assert told[:2] == [("Root", "job.retry", mine), ("Ada", "job.cancel", mine)]
    assert ("command line", "token.create", "token 1") in told


def test_two_people_may_choose_the_same_idempotency_key(visitor: TestClient, database: Database) -> None:
    made = []
    for name in ("Ada", "Bob"):
        headers = bearer(token_of(database, name)) | {"Idempotency-Key": "1"}
        first = visitor.post("/api/v1/jobs", json=SPEC, headers=headers).json()
        assert visitor.post("/api/v1/jobs", json=SPEC, headers=headers).json()["id"] == first["id"]
        made.append((first["id"], first["submitter"]))
    assert made[0][0] != made[1][0]
    assert [name for _, name in made] == ["Ada", "Bob"]


# --- browsers ----------------------------------------------------------------------------------------------------

HTML = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}


def log_in(visitor: TestClient, secret: str, **more: str) -> httpx2.Response:
    return visitor.post("/login", data={"token": secret} | more, headers=HTML, follow_redirects=False)


def csrf_of(visitor: TestClient) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', visitor.get("/", headers=HTML).text)
    assert found is not None
    return found[1]


def test_a_browser_logs_in_acts_and_logs_out(visitor: TestClient, database: Database) -> None:
    secret = token_of(database, "Ada")
    assert "Log in" in visitor.get("/", headers=HTML).text
    answer = log_in(visitor, secret, next="/jobs")
    assert (answer.status_code, answer.headers["location"]) == (303, "/jobs")
    cookie = answer.headers["set-cookie"]
    for said in ("HttpOnly", "SameSite=lax", "Secure", "expires="):
        assert said in cookie
    assert secret not in cookie
    with database.reading() as session:
        assert session.query(LoginSession).one().sha256 not in cookie, "only the browser knows the value"

    page = visitor.get("/submit/train", headers=HTML)
    assert "Ada" in page.text
    assert secret not in page.text
    assert 'name="submitter"' not in page.text, "a token says for whom it is"
    job = visitor.post("/api/v1/jobs", json=SPEC, headers={"X-CSRF-Token": csrf_of(visitor)}).json()
    assert job["submitter"] == "Ada"
    cancelled = visitor.post(
        f"/jobs/{job['id']}/cancel", data={"csrf": csrf_of(visitor)}, headers=HTML, follow_redirects=False
    )
    assert cancelled.status_code == 303

    kept = visitor.cookies[COOKIE]
    assert visitor.post("/logout", data={"csrf": csrf_of(visitor)}, headers=HTML).status_code == 200
    visitor.cookies.set(COOKIE, kept, domain="bench.example")
    assert "Log in" in visitor.get("/", headers=HTML).text, "the value is worth nothing any more"


@either_database
@pytest.mark.parametrize("given", [{}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": "é"}])
def test_a_form_that_is_not_this_logins_is_refused(
    visitor: TestClient, database: Database, given: dict[str, str]
) -> None:
    log_in(visitor, token_of(database, "Ada"))
    job = visitor.post("/api/v1/jobs", json=SPEC, headers={"X-CSRF-Token": csrf_of(visitor)}).json()
    for path in (f"/jobs/{job['id']}/cancel", "/submit/train", "/logout"):
        answer = visitor.post(path, data=given, headers=HTML, follow_redirects=False)
        assert answer.status_code == 403, path
        assert "does not belong to this login" in answer.text
    assert visitor.post(f"/api/v1/jobs/{job['id']}/cancel").status_code == 403
    assert visitor.get(f"/api/v1/jobs/{job['id']}").json()["state"] == "queued"


def test_another_sites_page_cannot_log_a_browser_in(visitor: TestClient, database: Database) -> None:
    headers = HTML | {"Sec-Fetch-Site": "cross-site"}
    answer = visitor.post("/login", data={"token": token_of(database, "Eve")}, headers=headers)
    assert answer.status_code == 403
    assert COOKIE not in visitor.cookies


def test_a_login_ends_with_its_time_and_with_its_token(visitor: TestClient, database: Database) -> None:
    log_in(visitor, token_of(database, "Ada"))
    with database.writing() as session:
        past = database_now(session) - timedelta(seconds=1)
        session.execute(update(LoginSession).values(expires_at=past))
    assert "Log in" in visitor.get("/", headers=HTML).text
    log_in(visitor, token_of(database, "Bob"))
    assert "Bob" in visitor.get("/", headers=HTML).text
    with database.writing() as session:
        tokens.revoke(session, "Bob", by=COMMAND_LINE)
    assert "Log in" in visitor.get("/", headers=HTML).text


@either_database
@pytest.mark.parametrize(
    "elsewhere", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/a\nb", ""]
)
def test_a_login_leads_to_a_page_of_this_service(visitor: TestClient, database: Database, elsewhere: str) -> None:
    assert log_in(visitor, token_of(database, "Ada"), next=elsewhere).headers["location"] == "/"


def test_somebody_who_is_logged_in_logs_in_as_another(visitor: TestClient, database: Database) -> None:
    log_in(visitor, token_of(database, "Ada", Scope.READ))
    first = visitor.cookies[COOKIE]
    shown = visitor.get("/login", headers=HTML).text
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', shown)
    assert found is not None
    assert log_in(visitor, token_of(database, "Bob"), csrf=found[1]).status_code == 303
    assert "Bob" in visitor.get("/", headers=HTML).text
    assert visitor.cookies[COOKIE] != first
    with database.reading() as session:
        assert session.query(LoginSession).count() == 1, "the first login has ended"


def test_a_file_that_calls_itself_a_form_is_not_read_for_its_fields(visitor: TestClient, database: Database) -> None:
    log_in(visitor, token_of(database, "Ada"))
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    read: list[int] = []

    def body() -> Iterator[bytes]:
        for _ in range(1000):
            read.append(1)
            yield b"csrf=" + bytes(1000)

    assert visitor.post("/api/v1/weights", content=body(), headers=headers).status_code == 403


@either_database
@pytest.mark.parametrize("origin", ["http://[", "null", "http://evil.example", "://"])
def test_origins_that_are_none_of_ours(client: TestClient, origin: str) -> None:
    assert client.post("/api/v1/jobs", json=SPEC, headers={"Origin": origin}).status_code == 403


def test_so_many_streams_may_be_open(guarded: Settings, database: Database) -> None:
    app = create_app(guarded.model_copy(update={"max_streams": 2, "max_stream_seconds": 0.1}))
    with TestClient(app, base_url="https://bench.example", client=("203.0.113.7", 1)) as client:
        ada = bearer(token_of(database, "Ada"))
        job = client.post("/api/v1/jobs", json=SPEC, headers=ada).json()["id"]
        for _ in range(3):
            assert client.get(f"/api/v1/jobs/{job}/events", headers=ada).status_code == 200
        assert +app.state.service.streams == {}, "those that ended are not counted"
        app.state.service.streams["token Ada"] = 2
        refused = client.get(f"/api/v1/jobs/{job}/events", headers=ada)
        assert_problem(refused, 429, "2 event streams are already open")


def test_of_many_streams_that_are_opened_at_once_no_more_get_in(guarded: Settings, database: Database) -> None:
    app = create_app(guarded.model_copy(update={"max_streams": 3, "max_stream_seconds": 1}))
    with TestClient(app, base_url="https://bench.example", client=("203.0.113.7", 1)) as client:
        ada = bearer(token_of(database, "Ada"))
        job = client.post("/api/v1/jobs", json=SPEC, headers=ada).json()["id"]
        together = Barrier(12)

        def follow(_: int) -> int:
            together.wait()
            return client.get(f"/api/v1/jobs/{job}/events", headers=ada).status_code

        with ThreadPoolExecutor(12) as threads:
            assert sorted(threads.map(follow, range(12))) == [200] * 3 + [429] * 9
        assert client.get("/api/v1/jobs/999/events", headers=ada).status_code == 404
        assert app.state.service.streams == {}


def test_a_wrong_token_is_told_on_the_page(visitor: TestClient) -> None:
    answer = log_in(visitor, "gklb_nonsense")
    assert answer.status_code == 401
    assert "unknown, expired or revoked" in answer.text
    assert "gklb_nonsense" not in answer.text


# --- open on loopback --------------------------------------------------------------------------------------------


@either_database
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "192.168.1.7:8000"},
        {"X-Forwarded-For": "203.0.113.9"},
        {"Forwarded": "for=203.0.113.9"},
        {"X-Forwarded-Host": "bench.example"},
        {"X-Real-IP": "203.0.113.9"},
        {"Via": "1.1 proxy"},
    ],
)
def test_open_is_for_this_machine_alone(client: TestClient, headers: dict[str, str]) -> None:
    assert client.get("/api/v1/jobs").status_code == 200
    answer = client.get("/api/v1/jobs", headers=headers)
    assert_problem(answer, 403, "open to its own machine only")


def test_open_is_not_for_other_hosts_whatever_they_call_it(settings: Settings) -> None:
    with TestClient(create_app(settings), base_url="http://localhost", client=("203.0.113.7", 1)) as client:
        assert_problem(client.get("/api/v1/jobs"), 403, "open to its own machine only")


def test_open_anywhere_else_is_refused_at_start() -> None:
    with pytest.raises(ValidationError, match="for loopback only"):
        Settings(host="0.0.0.0", access="open")
    assert not Settings(host="0.0.0.0").is_open
    assert Settings().is_open
    assert not Settings(access="tokens").is_open


def test_a_service_for_others_does_not_start_without_a_token(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    elsewhere = settings.model_copy(update={"host": "0.0.0.0"})
    with pytest.raises(Unauthorized, match="gklbench token create"):
        tokens.check_start(database, elsewhere)
    tokens.check_start(database, settings)
    token_of(database, "Ada")
    tokens.check_start(database, elsewhere)
    own = Settings(data_dir=tmp_path / "own", access="tokens", port=0)
    with pytest.raises((StartError, Unauthorized), match="there is none"), EmbeddedService(own):
        pass


def again(page: httpx2.Response) -> tuple[str, dict[str, str]]:
    """Where the form on a page of refusal leads, and what it sends."""
    form = re.search(r'<main.*?<form method="post" action="([^"]*)"(.*?)</form>', page.text, re.DOTALL)
    assert form is not None, page.text
    fields = re.findall(r'name="([^"]+)" value="([^"]*)"', form[2])
    return html.unescape(form[1]), {name: html.unescape(value) for name, value in fields}


def test_what_was_typed_outlives_the_login(visitor: TestClient, database: Database) -> None:
    """In every form, not only in that of a job."""
    visitor.headers["accept"] = "text/html"
    secret, typed = (
        token_of(database, "Ada", Scope.ADMIN),
        {"reason": 'half an hour\'s "work" <&>', "action": "withdraw"},
    )
    lost = visitor.post("/entries/1/withdrawal", data=typed)
    assert lost.status_code == 401
    assert 'href="/login"' in lost.text.partition("<main")[2]
    assert again(lost) == ("/entries/1/withdrawal", typed)
    # After a login in another tab the form of this one is not that login's.
    visitor.post("/login", data={"token": secret})
    stale = visitor.post("/entries/1/withdrawal", data=again(lost)[1])
    assert stale.status_code == 403
    where, fields = again(stale)
    assert fields.pop("csrf")
    assert (where, fields) == ("/entries/1/withdrawal", typed)
    assert visitor.post(where, data=again(stale)[1]).status_code == 404, "sent: there is no such entry"
    job = {"name": "typed", "nonce": "0" * 32, "action": "send"}
    refused = visitor.post("/submit/train", data=job)
    assert again(refused)[1].items() >= {**job, "action": "update"}.items()
    assert 'value="typed"' in visitor.post("/submit/train", data=again(refused)[1]).text, "the form again, filled in"


def test_neither_a_token_nor_a_form_of_another_site_comes_back(visitor: TestClient, database: Database) -> None:
    visitor.headers["accept"] = "text/html"
    secret = token_of(database, "Ada")
    visitor.post("/login", data={"token": secret})
    assert secret not in visitor.post("/login", data={"token": secret, "next": "/"}).text
    foreign = visitor.post("/submit/train", data={"name": "theirs"}, headers={"Sec-Fetch-Site": "cross-site"})
    assert foreign.status_code == 403
    assert "theirs" not in foreign.text


# --- the command line --------------------------------------------------------------------------------------------


def gklbench(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["token", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_tokens_from_the_command_line(tmp_path: Path) -> None:
    here = ("--data-dir", str(tmp_path))
    code, secret, said = gklbench("create", "--name", "Ada", "--scopes", "read,submit", "--max-running", "2", *here)
    assert code == 0
    assert re.fullmatch(r"gklb_[\w-]{43}\n", secret)
    assert "shown only once" in said
    code, listed, _ = gklbench("list", *here)
    assert "Ada" in listed
    assert secret.strip() not in listed
    assert gklbench("limit", "--name", "Ada", "--gpu-hours-per-day", "1.5", *here)[0] == 0
    database = Database(f"sqlite:///{tmp_path / 'gklbench.sqlite3'}")
    with database.reading() as session:
        limits = tokens.limits_of(session, ["Ada"])["Ada"]
    assert (limits.running_jobs, limits.gpu_hours_per_day, limits.requests_per_minute) == (2, 1.5, 600)
    code, fresh, _ = gklbench("rotate", "--name", "Ada", "--overlap", "0h", *here)
    assert fresh != secret
    with database.reading() as session:
        assert tokens.find(session, secret.strip()) is None
        assert tokens.find(session, fresh.strip()) is not None
    with database.writing() as session:
        job_id = jobs.create(session, tiny_train_spec(), submitter="Ada").id
    code, said, _ = gklbench("revoke", "--name", "Ada", *here)
    assert code == 1
    assert f"Unfinished jobs of Ada continue: job {job_id}." in said
    with database.reading() as session:
        assert len(tokens.valid(session)) == 1, "not before somebody has said yes"
    code, said, _ = gklbench("revoke", "--name", "Ada", "--yes", *here)
    assert code == 0
    assert "1 token of Ada revoked." in said
    with database.reading() as session:
        assert tokens.valid(session) == []
    assert gklbench("revoke", "--name", "Ada", "--yes", *here)[0] == 1
    database.close()


@pytest.mark.parametrize(
    "wrong",
    [
        ("--scopes", "all"),
        ("--scopes", ""),
        ("--expires", "soon"),
        ("--max-running", "many"),
        ("--max-running", "1.5"),
        ("--upload-gib", "-1"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, wrong: tuple[str, str]) -> None:
    code, secret, _ = gklbench("create", "--name", "Ada", *wrong, "--data-dir", str(tmp_path))
    assert code != 0
    assert secret == ""


def test_identified_is_a_dependency_of_every_guarded_route(guarded: Settings) -> None:
    """The CSRF check is in it."""
    for route in routes(guarded):
        waiting, calls = [route.dependant], []
        while waiting:
            dependant = waiting.pop()
            calls.append(dependant.call)
            waiting += dependant.dependencies
        if route.methods != {"GET"} and route.path not in ("/healthz", "/readyz"):
            assert identified in calls, route.path
