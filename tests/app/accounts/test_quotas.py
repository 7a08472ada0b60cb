"""What a token may use: jobs, hours, bytes, requests; and what the owner lets jobs ask for."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from app import jobs
from app.accounts import quotas, tokens
from app.accounts.audit import COMMAND_LINE
from app.accounts.rate_limits import RateLimiter
from app.accounts.tokens import Limits
from app.core.errors import TooMany
from app.core.settings import Settings
from app.db.database import Database, database_now
from app.db.tables import Job, WorkerTime
from app.main import create_app
from gkl.answers import JobState, Scope
from tests.app.routes.test_api import assert_problem
from tests.local import application, serving
from tests.specs import digits, tiny_train_spec
from tests.tokens import NO_LIMITS, bearer, token_of

LEASE = timedelta(seconds=90)
SPEC = tiny_train_spec().model_dump(mode="json")


def claim(database: Database) -> str | None:
    """Whose job a worker gets."""
    with database.writing() as session:
        got = jobs.claim(session, worker="w", lease=LEASE)
        return None if got is None else jobs.get(session, got.job_id).submitter


def add(database: Database, submitter: str, count: int = 1) -> list[int]:
    with database.writing() as session:
        return [jobs.create(session, digits(), submitter=submitter).id for _ in range(count)]


# --- jobs --------------------------------------------------------------------------------------------------------


def test_so_many_jobs_may_wait(visitor: TestClient, database: Database) -> None:
    ada = bearer(token_of(database, "Ada", limits=Limits(queued_jobs=2)))
    first, _ = (visitor.post("/api/v1/jobs", json=SPEC, headers=ada).json()["id"] for _ in range(2))
    refused = visitor.post("/api/v1/jobs", json=SPEC, headers=ada)
    assert_problem(refused, 429, "Ada has 2 queued jobs, the limit")
    assert int(refused.headers["retry-after"]) > 0
    assert visitor.post(f"/api/v1/jobs/{first}/cancel", headers=ada).status_code == 202
    again = visitor.post("/api/v1/jobs", json=SPEC, headers=ada)
    assert again.status_code == 202
    assert_problem(visitor.post(f"/api/v1/jobs/{first}/retry", headers=ada), 429, "Ada has 2 queued jobs")
    bob = bearer(token_of(database, "Bob", limits=Limits(queued_jobs=1)))
    assert visitor.post("/api/v1/jobs", json=SPEC, headers=bob).status_code == 202, "each has their own"


def test_so_many_jobs_may_run_and_others_go_first(database: Database) -> None:
    token_of(database, "Ada", limits=Limits(running_jobs=1))
    first, second = add(database, "Ada", 2)
    add(database, "Bob")
    assert [claim(database) for _ in range(3)] == ["Ada", "Bob", None]
    with database.reading() as session:
        waits = quotas.why_waiting(session, jobs.get(session, second))
        assert waits == "its submitter has 1 running job, the limit"
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == first).values(state=JobState.SUCCEEDED))
    assert claim(database) == "Ada"


def test_hours_of_a_day_are_counted_and_run_out(visitor: TestClient, database: Database) -> None:
    ada = bearer(token_of(database, "Ada", limits=Limits(gpu_hours_per_day=1)))
    job_id, waiting = add(database, "Ada", 2)
    assert claim(database) == "Ada"
    with database.writing() as session:
        # It has been on its worker for longer than there was of this day, and than it may.
        now = database_now(session)
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        begun = now - timedelta(hours=30)
        session.execute(update(Job).where(Job.id == job_id).values(claimed_at=begun, lease_expires_at=now + LEASE))
    with database.reading() as session:
        today = quotas.seconds_today(session, "Ada", now)
    assert today == pytest.approx((now - midnight).total_seconds(), abs=1), "only what was today"
    with database.writing() as session:
        jobs.succeed(session, jobs.Claim(job_id, 1, {}, None, 0.0))
    with database.reading() as session:
        days = {row.day: row.seconds for row in session.query(WorkerTime)}
        assert sum(days.values()) == pytest.approx(30 * 3600, abs=5)
        assert days[midnight.date()] == pytest.approx((now - midnight).total_seconds(), abs=5)
    with database.writing() as session:
        session.execute(update(WorkerTime).where(WorkerTime.day == midnight.date()).values(seconds=3601.0))
    assert claim(database) is None
    with database.reading() as session:
        assert "it continues at 00:00 UTC" in (quotas.why_waiting(session, jobs.get(session, waiting)) or "")
    refused = visitor.post("/api/v1/jobs", json=SPEC, headers=ada)
    assert_problem(refused, 429, "have used their 1 hours on workers today")
    assert 0 < int(refused.headers["retry-after"]) <= 24 * 3600
    assert "It waits: its submitter has used" in visitor.get(f"/jobs/{waiting}", headers={"Accept": "text/html"}).text
    with database.writing() as session:
        tokens.change(session, "Ada", Limits(gpu_hours_per_day=2), by=COMMAND_LINE)
    assert claim(database) == "Ada"


def test_time_of_lost_and_handed_back_attempts_counts(database: Database) -> None:
    token_of(database, "Ada")
    add(database, "Ada")
    with database.writing() as session:
        got = jobs.claim(session, worker="w", lease=LEASE)
        assert got is not None
    with database.writing() as session:
        session.execute(update(Job).values(claimed_at=database_now(session) - timedelta(seconds=60)))
    with database.writing() as session:
        jobs.hand_back(session, got)
    with database.reading() as session:
        assert sum(row.seconds for row in session.query(WorkerTime)) == pytest.approx(60, abs=5)


def test_midnight_divides_an_attempt() -> None:
    start, end = datetime(2026, 1, 1, 22, tzinfo=UTC), datetime(2026, 1, 3, 1, tzinfo=UTC)
    assert [seconds / 3600 for _, seconds in quotas._days(start, end)] == [2, 24, 1]
    assert quotas._days(end, start) == []


def test_one_sees_what_one_may_use_and_does(visitor: TestClient, database: Database) -> None:
    limits = Limits(queued_jobs=5, running_jobs=2, gpu_hours_per_day=1.5, upload_bytes=10**9, requests_per_minute=100)
    ada = bearer(token_of(database, "Ada", limits=limits))
    add(database, "Ada", 3)
    add(database, "Bob")
    assert claim(database) == "Ada"
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == 1).values(claimed_at=database_now(session) - timedelta(minutes=30)))
        now = database_now(session)
    seen = visitor.get("/api/v1/me", headers=ada).json()
    assert (seen["name"], seen["scope"]) == ("Ada", "submit")
    assert seen["limits"] == {
        "queued_jobs": 5,
        "running_jobs": 2,
        "gpu_hours_per_day": 1.5,
        "upload_bytes": 10**9,
        "requests_per_minute": 100,
    }
    used = seen["used"]
    assert (used["queued_jobs"], used["running_jobs"], used["upload_bytes"]) == (2, 1, 0)
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert used["gpu_hours_today"] == pytest.approx(min(0.5, (now - midnight).total_seconds() / 3600), abs=0.01)
    assert visitor.get("/api/v1/me").json()["name"] == "anonymous"
    page = visitor.get("/me", headers=ada | {"Accept": "text/html"}).text
    assert "Hours on workers today" in page
    assert "1.5" in page


# --- requests ----------------------------------------------------------------------------------------------------


def test_so_many_requests_a_minute(visitor: TestClient, database: Database) -> None:
    # The broker, which counts, is the same for all tests.
    name = f"Ada {secrets.token_hex(8)}"
    ada = bearer(token_of(database, name, limits=Limits(requests_per_minute=3)))
    codes = [visitor.get("/api/v1/workers", headers=ada).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    refused = visitor.get("/api/v1/workers", headers=ada)
    assert_problem(refused, 429, "ore than 3 requests a minute")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert visitor.get("/api/v1/workers").status_code == 200, "others go on"


@pytest.fixture
def narrow(guarded: Settings) -> Iterator[TestClient]:
    settings = guarded.model_copy(update={"anonymous_requests_per_minute": 2})
    address = f"2001:db8:{secrets.token_hex(2)}:{secrets.token_hex(2)}::1"
    with (
        application(settings) as app,
        TestClient(app, base_url="https://bench.example", client=(address, 1)) as client,
    ):
        yield client


def test_whoever_has_no_token_is_counted_by_address(narrow: TestClient) -> None:
    wrong = bearer("gklb_" + "A" * 43)
    codes = [narrow.get("/api/v1/workers", headers=headers).status_code for headers in (wrong, {}, {})]
    assert codes == [401, 200, 429], "guesses count too"
    assert narrow.get("/healthz").status_code == 200


def test_two_processes_count_together_and_alone_without_a_broker(settings: Settings) -> None:
    ours, theirs = RateLimiter(settings), RateLimiter(settings)
    who = f"test {datetime.now(UTC).timestamp()}"
    ours.count(who, 2)
    theirs.count(who, 2)
    for limiter in (ours, theirs):
        with pytest.raises(TooMany, match="more than 2 requests a minute"):
            limiter.count(who, 2)
    away = RateLimiter(settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"}))
    away.count(who, 1)
    with pytest.raises(TooMany):
        away.count(who, 1)


# --- what jobs may ask for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings_change", "spec_change", "says"),
    [
        ({"max_epochs": 5}, {"epochs": 6}, "epochs: the service's owner allows at most 5"),
        ({"max_batch_size": 64}, {"batch_size": 65}, "batch_size: the service's owner allows at most 64"),
        ({"max_points": 100}, {}, "evaluation.num_points: the service's owner allows at most 100"),
        ({"architectures": "small_cnn, resnet18"}, {}, "the service's owner allows only resnet18, small_cnn"),
    ],
)
def test_the_owners_limits(
    settings: Settings, settings_change: dict[str, Any], spec_change: dict[str, Any], says: str
) -> None:
    limited = settings.model_copy(update=settings_change)
    spec = SPEC | spec_change
    with serving(limited) as client:
        answer = client.post("/api/v1/jobs", json=spec)
        problem = assert_problem(answer, 422, says[1:])
        assert problem.code == "invalid_input"
        assert client.get("/api/v1/jobs").json()["jobs"] == []


def test_an_evaluations_limits_hold_where_it_is_sent_alone(settings: Settings) -> None:
    limited = settings.model_copy(update={"max_batch_size": 100})
    with serving(limited) as client:
        spec = {
            "kind": "evaluate",
            "name": "x",
            "dataset": "digits",
            "architecture": "tiny_cnn",
            "weights": "0" * 64,
            "evaluation": {"threat_model": {"norm": "Linf", "epsilon": 0.1}},
        }
        assert_problem(
            client.post("/api/v1/jobs", json=spec), 422, "batch_size: the service's owner allows at most 100"
        )


def test_an_admins_token_may_be_without_limits(database: Database) -> None:
    token_of(database, "Root", Scope.ADMIN, NO_LIMITS)
    with database.writing() as session:
        for _ in range(3):
            quotas.check_room_for_job(session, "Root")
        quotas.check_upload_fits(session, "Root", 2**60)


def test_a_crowd_of_ones_own_does_not_get_past_the_limit(guarded: Settings, database: Database) -> None:
    ada = bearer(token_of(database, "Ada", limits=Limits(queued_jobs=3, upload_bytes=1000)))
    app = create_app(guarded)
    codes: list[int] = []

    def one() -> None:
        client = TestClient(app, base_url="https://bench.example")
        for _ in range(2):
            codes.append(client.post("/api/v1/jobs", json=SPEC, headers=ada).status_code)
            begun = client.post("/api/v1/uploads", headers=ada | {"Upload-Length": "400"})
            codes.append(begun.status_code)

    crowd = [Thread(target=one) for _ in range(6)]
    # One for all that begins and ends the application.
    with TestClient(app):
        for each in crowd:
            each.start()
        for each in crowd:
            each.join()
    assert {code: codes.count(code) for code in set(codes)} == {202: 3, 201: 2, 429: 19}
