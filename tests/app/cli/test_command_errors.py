"""What a command says of an error: one sentence, which names the option at fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from app.cli.command_errors import sentence_of
from app.cli.terminal import SettingsError
from app.core.errors import NotFound
from app.core.settings import Settings
from gkl.client import Client, ClientError
from gkl.errors import InvalidInput
from tests.commands import run
from tests.servers import limited_proxy, served
from tests.specs import tiny_train_spec


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    with served(settings) as url:
        yield url


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.json"
    path.write_text(tiny_train_spec().model_dump_json())
    return path


def said(*arguments: str | Path) -> str:
    ended = run(*arguments)
    assert ended.returncode == 1, ended.stdout
    assert ended.stdout == ""
    assert ended.stderr.startswith("gklbench: ")
    return ended.stderr.removeprefix("gklbench: ")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_the_service_refuses_is_said_of_the_option(url: str, spec: Path) -> None:
    for option, value, message in (
        ("--priority", "1000", "--priority: input should be less than or equal to 100"),
        ("--submitter", " Ada", "--submitter: string should match pattern"),
    ):
        sentence = said("submit", spec, option, value, "--url", url)
        assert message in sentence
        assert "query" not in sentence
    assert "THREAT_MODEL: string should match" in said("board", "digits", "a b", "--url", url)


def test_what_the_client_refuses_is_said_of_the_option(spec: Path) -> None:
    assert said("status", "1", "--url", "ftp://127.0.0.1").startswith("--url: 'ftp://127.0.0.1' is no address")
    assert said("status", "1", "--token", "a b").startswith("--token: the token holds characters")
    assert "give its address with --url" in said("status", "1", "--url", "http://127.0.0.1:1")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_where_somebody_else_answers_the_option_is_named(url: str) -> None:
    with limited_proxy(url, status=404) as proxy:
        assert said("status", "1", "--url", proxy.url).endswith("at the proxy (--url)\n")


def test_what_is_wrong_with_a_key_of_weights_is_said_of_the_option(tmp_path: Path) -> None:
    evaluation = {"threat_model": {"norm": "Linf", "epsilon": 0.2}}
    spec = tmp_path / "evaluate.json"
    base = {"kind": "evaluate", "name": "a", "dataset": "digits", "architecture": "tiny_cnn", "evaluation": evaluation}

    spec.write_text(json.dumps(base | {"weights": "0" * 64}))
    assert "--weights-key: string should have at least 1 character" in said("submit", spec, "--weights-key", "")
    spec.write_text(json.dumps(base | {"weights": "0" * 64, "weights_key": "ema"}))
    sentence = said("submit", spec, "--weights-key", "model")
    assert "has weights_key 'ema', and --weights-key is 'model'" in sentence


def test_the_sentence_of_each_kind_of_error() -> None:
    away = OperationalError("SELECT 1", {}, Exception("no such file\nmore"))
    assert sentence_of(away) == "the database cannot be used (no such file); look at GKLBENCH_DATABASE_URL"
    for error in (InvalidInput("a"), NotFound("a"), SettingsError("a"), ClientError("a")):
        assert sentence_of(error) == "a"
    missing = ModuleNotFoundError("No module named 's3fs'", name="s3fs")
    assert str(sentence_of(missing)).endswith("pip install 'gklbench[s3]'")
    assert sentence_of(ModuleNotFoundError("No module named 'ours'", name="ours")) is None
    assert sentence_of(ValueError("a")) is None


def test_an_address_is_checked_before_anything_is_sent() -> None:
    for address in ("nonsense", "http://", "http://[::1", "ftp://127.0.0.1"):
        with pytest.raises(ClientError, match="is no address") as refused:
            Client(address)
        assert [problem.location for problem in refused.value.errors] == ["url"]
