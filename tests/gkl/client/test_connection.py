"""What a request comes to: errors by class and sentence, what is sent again, proxies, and where nothing answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from app.core.settings import Settings
from app.db.database import Database
from gkl.answers import Scope
from gkl.client import (
    Client,
    ClientError,
    Conflict,
    Invalid,
    NotFound,
    NotTheService,
    Refused,
    TooManyRequests,
    Unreachable,
)
from tests.cluster import free_port
from tests.servers import limited_proxy, served
from tests.specs import tiny_train_spec
from tests.tokens import token_of

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gkl.client.connection._PAUSES", (0.01, 0.01, 0.01))


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("status", [200, 302, 401, 413, 502])
def test_a_page_of_somebody_else_is_a_sentence(url: str, weights: Path, status: int) -> None:
    with limited_proxy(url, status=status) as proxy, Client(proxy.url) as client:
        for ask in (lambda: client.job(1), lambda: client.upload(weights)):
            with pytest.raises(ClientError) as refused:
                ask()
            assert "proxy" in str(refused.value)
            assert str(status) in str(refused.value)
            assert "<" not in str(refused.value)


@pytest.mark.parametrize(
    "proxies",
    [
        {"http_proxy": "http://127.0.0.1:1"},
        {"all_proxy": "socks5://127.0.0.1:1"},
        {"http_proxy": "nonsense://x", "HTTPS_PROXY": "http://[:"},
    ],
)
def test_this_machine_is_asked_without_a_proxy(
    url: str, proxies: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    for loopback in (url, url.replace("127.0.0.1", "localhost")):
        with Client(loopback) as client, pytest.raises(ClientError, match="no job 7"):
            client.job(7)


def test_other_machines_are_asked_by_the_proxy_of_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with Client("http://bench.example") as client, pytest.raises(ClientError, match="through the proxy that the env"):
        client.job(7)
    monkeypatch.setenv("no_proxy", "bench.example")
    with Client("http://bench.example") as client, pytest.raises(ClientError) as refused:
        client.job(7)
    assert "proxy" not in str(refused.value)
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(ClientError, match="SOCKS proxy"):
        Client("http://bench.example")
    monkeypatch.setenv("http_proxy", "nonsense://x")
    with pytest.raises(ClientError, match="a proxy that the environment names cannot be used"):
        Client("http://bench.example")


@pytest.mark.parametrize("address", ["nonsense", "http://", "http://[::1", "ftp://127.0.0.1"])
def test_what_is_no_address_is_a_sentence(database_url: str, address: str) -> None:
    with pytest.raises(ClientError), Client(address) as client:
        client.job(1)


def test_a_token_with_other_letters_is_a_sentence(database_url: str) -> None:
    with pytest.raises(ClientError, match="the token holds characters"):
        Client("http://127.0.0.1:1", "gklb_\N{CYRILLIC SMALL LETTER A}")


def test_where_nothing_answers_each_command_says_so(database_url: str, weights: Path) -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client:
        for ask in (
            lambda: client.upload(weights),
            lambda: client.attack(1, weights, name="a", submitter=None),
            lambda: client.submit(tiny_train_spec()),
            lambda: client.cancel(1),
        ):
            with pytest.raises(ClientError, match="no service answers at"):
                ask()
    assert httpx2.URL(client.url).port


def test_an_answer_of_the_service_is_its_sentence(url: str, tmp_path: Path) -> None:
    with Client(f"{url}/") as client, pytest.raises(ClientError, match=r"answered 404: There is no job 7\.$"):
        client.job(7)
    with Client(url) as client, pytest.raises(ClientError, match="cannot be read"):
        client.upload(tmp_path)


def test_each_error_has_its_class_and_what_the_service_said(client: Client) -> None:
    refusals: list[tuple[type[ClientError], int, str, Callable[[], object]]] = [
        (NotFound, 404, "not_found", lambda: client.entry(7)),
        (Conflict, 409, "conflict", lambda: client.retry(client.submit(tiny_train_spec()).id)),
        (Invalid, 422, "invalid_input", lambda: client.submit({"kind": "train"})),
    ]
    for kind, status, code, ask in refusals:
        with pytest.raises(kind) as refused:
            ask()
        assert (refused.value.status, refused.value.code) == (status, code)
        assert refused.value.detail in str(refused.value)
        assert refused.value.detail[0].isupper() or refused.value.errors
    assert "body.name" in [problem.location for problem in refused.value.errors]


def test_a_token_that_does_not_allow_it_is_refused(settings: Settings, database: Database) -> None:
    token = token_of(database, "Ada", Scope.READ)
    with served(settings.model_copy(update={"access": "tokens"})) as url:
        with Client(url, token) as client:
            assert client.whoami().name == "Ada"
            with pytest.raises(Refused) as refused:
                client.submit(tiny_train_spec())
        with Client(url, "gklb_unknown") as client, pytest.raises(Refused):
            client.job(1)
    assert (refused.value.status, refused.value.code) == (403, "forbidden")


# --- sent again --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("away", [{"status": 429}, {"status": 502}, {"status": 503}, {"status": 504}, {"cuts": True}])
def test_what_is_safe_is_sent_again(url: str, away: dict[str, int]) -> None:
    with limited_proxy(url, times=3, **away) as proxy, Client(proxy.url) as client:
        client.boards()
        assert proxy.refused == 3
        proxy.refused = 0
        job = client.submit(tiny_train_spec())
        assert proxy.refused == 3
        assert [each.id for each in client.jobs()] == [job.id], "once, however often it was sent"


@pytest.mark.usefixtures("no_pauses")
def test_at_most_four_times(url: str) -> None:
    with limited_proxy(url, status=503) as proxy, Client(proxy.url) as client:
        with pytest.raises(NotTheService):
            client.boards()
        assert proxy.refused == 4
    with limited_proxy(url, status=503) as proxy, Client(proxy.url, patience_seconds=0) as client:
        with pytest.raises(NotTheService):
            client.boards()
        assert proxy.refused == 1


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("away", [{"status": 503}, {"cuts": True}])
def test_what_could_be_done_twice_is_sent_once(url: str, weights: Path, away: dict[str, int]) -> None:
    with Client(url) as client:
        job = client.submit(tiny_train_spec())
    with limited_proxy(url, times=9, **away) as proxy, Client(proxy.url) as client:
        for ask in (
            lambda: client.cancel(job.id),
            lambda: client.retry(job.id),
            lambda: client.attack(1, weights, name="a"),
        ):
            before = proxy.refused
            with pytest.raises(ClientError):
                ask()
            assert proxy.refused == before + 1


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("status", [404, 422, 500, 501])
def test_what_will_not_pass_is_sent_once(url: str, status: int) -> None:
    with limited_proxy(url, status=status) as proxy, Client(proxy.url) as client:
        with pytest.raises(ClientError):
            client.boards()
        assert proxy.refused == 1


@pytest.mark.usefixtures("no_pauses")
def test_the_service_says_when_to_come_back(url: str) -> None:
    began = time.monotonic()
    with limited_proxy(url, status=503, times=1, retry_after=1) as proxy, Client(proxy.url) as client:
        client.boards()
    assert time.monotonic() - began >= 1
    began = time.monotonic()
    with limited_proxy(url, status=503, times=1, retry_after=3600) as proxy, Client(proxy.url) as client:
        with pytest.raises(NotTheService):
            client.boards()
        assert proxy.refused == 1
    assert time.monotonic() - began < 30, "nobody waits for an hour"


def test_a_limit_says_when_to_come_back(settings: Settings, database: Database) -> None:
    few = settings.model_copy(update={"access": "tokens", "anonymous_requests_per_minute": 1})
    with served(few) as url, Client(url, patience_seconds=0) as client:
        client.boards()
        with pytest.raises(TooManyRequests) as refused:
            client.boards()
    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 60


@pytest.mark.usefixtures("no_pauses")
def test_where_nobody_listens_is_told_at_once_unless_somebody_did(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("gkl.client.connection.time.sleep", pauses.append)
    with limited_proxy(url, max_bytes=10_000) as proxy:
        client = Client(proxy.url)
        client.boards()
        address = proxy.url
        # The proxy's thread for an open connection would live on after it.
        client.close()
    with Client(address) as stranger, pytest.raises(Unreachable):
        stranger.boards()
    assert pauses == []
    with Client(address) as known, pytest.raises(Unreachable):
        known._connection.has_answered = client._connection.has_answered
        known.boards()
    assert len(pauses) == 3
