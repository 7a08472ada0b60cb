"""The REST client: against a real service, through proxies that are in its way, and where nothing answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from safetensors.numpy import save_file

from app.database import Database
from app.settings import Settings
from gkl.client import Client, ClientError
from gkl.files import sha256_of
from tests.app.test_leaderboard import measure, train
from tests.cluster import free_port
from tests.servers import limited_proxy, served
from tests.specs import tiny_train_spec

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    # What comes through a proxy comes from loopback here, and is let in as long as the proxy adds no header.
    with served(settings) as url:
        yield url


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": np.random.default_rng(0).standard_normal(750_000).astype(np.float32)}, path)
    return path


def test_pieces_that_a_proxy_refuses_are_halved_once_for_all(url: str, weights: Path) -> None:
    with limited_proxy(url) as proxy, Client(proxy.url) as client:
        assert client.upload(weights).sha256 == sha256_of(weights)
        # 3 MB, 1.5 MB; then 750 kB went through.
        assert proxy.refused == 2
        assert sum(proxy.pieces) == weights.stat().st_size
        save_file({"weight": np.ones(750_000, np.float32)}, weights)
        client.upload(weights)
        assert proxy.refused == 2


def test_a_proxy_that_ends_the_connection_gets_smaller_pieces_too(
    url: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gkl.client.uploads._RECONNECT_SECONDS", 0.01)
    with limited_proxy(url, cuts=True) as proxy, Client(proxy.url) as client:
        assert client.upload(weights).sha256 == sha256_of(weights)


def test_where_even_the_smallest_piece_is_refused_the_proxy_is_named(url: str, weights: Path) -> None:
    with limited_proxy(url, max_bytes=1000) as proxy, Client(proxy.url) as client:
        with pytest.raises(ClientError, match=r"a proxy between here and http.* refuses even 65536 bytes as too large"):
            client.upload(weights)
        with pytest.raises(ClientError, match=r"a proxy between here and http.* refuses the body as too large"):
            client.attack(1, weights, name="a", submitter=None)


@pytest.mark.parametrize("status", [200, 302, 401, 413, 502])
def test_a_page_of_somebody_else_is_a_sentence(url: str, weights: Path, status: int) -> None:
    with limited_proxy(url, status=status) as proxy, Client(proxy.url) as client:
        for ask in (lambda: client.job(1), lambda: client.upload(weights)):
            with pytest.raises(ClientError) as refused:
                ask()
            assert "proxy" in str(refused.value)
            assert str(status) in str(refused.value)
            assert "<" not in str(refused.value)


def test_a_model_comes_with_all_its_pages(url: str, database: Database) -> None:
    weights = train(database, "Often measured")
    for number in range(103):
        measure(database, weights, robust=100 + number)
    with Client(url) as client:
        model = client.model(1)
    assert [evaluation.id for evaluation in model.evaluations] == list(range(103, 0, -1))
    assert [(entry.threat_model, entry.rank) for entry in model.entries] == [("Linf", 1)]
    assert model.next_cursor is None


def test_an_answer_of_the_service_is_its_sentence(url: str, tmp_path: Path) -> None:
    with Client(f"{url}/") as client, pytest.raises(ClientError, match=r"answered 404: There is no job 7\.$"):
        client.job(7)
    with Client(url) as client, pytest.raises(ClientError, match="cannot be read"):
        client.upload(tmp_path)


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
