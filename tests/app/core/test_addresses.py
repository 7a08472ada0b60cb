from __future__ import annotations

import pytest
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from app.core.settings import Settings


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://gklbench:s3cr3t@postgres/gklbench",
        "postgresql://gklbench:a%40b%3Ac%2Fd%25@127.0.0.1:5432/gklbench?sslmode=require",
        "postgresql://postgres:@/bench?host=/tmp/folder",
        "postgresql://ada@lab.example:pw@host/bench",
        "postgresql+psycopg://127.0.0.1:1/none",
        "postgresql://u:p@[::1]:5432/bench",
        "sqlite:////folder/file.sqlite3",
        "sqlite:///a@b/file.sqlite3?timeout=3",
    ],
)
def test_a_database_that_can_be_used_is_taken(url: str) -> None:
    assert Settings(database_url=url).effective_database_url == url


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "is not a valid address"),
        ("postgresql:/x", "is not a valid address"),
        ("://", "is not a valid address"),
        ("postgresql://lab:s3cr3t@b:c@127.0.0.1:1/bench", "percent-escape"),
        ("postgresql://lab:s3cr3t@b@127.0.0.1/bench", "percent-escape"),
        ("postgresql://lab:s3cr3t@b/c@127.0.0.1/bench", "percent-escape"),
        ("postgresql://lab:s3cr3t@b?c@127.0.0.1/bench", "percent-escape"),
        ("postgresql://lab:s3cr3t%zz@127.0.0.1/bench", "percent-escape"),
        ("postgresql://lab:s3cr3t@host:port/bench", "is not a valid address"),
        ("postgresql://lab:s3cr3t@host:99999/bench", "is not a valid address"),
        ("postgresql://lab:s3cr3t@[::1/bench", "is not a valid address"),
        ("postgres://lab:s3cr3t@host/bench", "write postgresql://"),
        ("mysql://lab:s3cr3t@host/bench", "names the system 'mysql'; supported are"),
        ("postgresql+asyncpg://lab:s3cr3t@host/bench", "names the system 'postgresql+asyncpg'"),
        ("sqlite+aiosqlite:///file", "names the system 'sqlite+aiosqlite'"),
        ("sqlite://folder/file", "SQLite has none"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///file?speed=9", "has the option 'speed'"),
    ],
)
def test_a_database_that_cannot_be_used_is_a_sentence_without_the_password(url: str, says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(database_url=url)
    (problem,) = refused.value.errors(include_input=False)
    assert says in problem["msg"]
    assert "GKLBENCH_DATABASE_URL" in problem["msg"]
    assert "s3cr3t" not in problem["msg"]


@pytest.mark.parametrize("url", ["redis://h:6379/0", "rediss://:a%2Fb@h", "redis://:a@b@h:1/2", "redis://[::1]:6379"])
def test_a_broker_that_can_be_used_is_taken(url: str) -> None:
    assert Settings(broker_url=url).broker_url == url


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cr3t/b@h:6379/0",
        "redis://:s3cr3t#b@h:6379/0",
        "redis://:12?s3cr3t@h:6379/0",
        "redis://:s3cr3t%zz@h:6379/0",
        "redis://:s3cr3t@h:port/0",
        "redis://:s3cr3t@h:6379/zero",
        "redis://[::1",
        "redis://h:0/0",
        "amqp://:s3cr3t@h",
    ],
)
def test_a_broker_that_cannot_be_used_is_a_sentence_without_the_password(url: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(broker_url=url)
    (problem,) = refused.value.errors(include_input=False)
    assert "GKLBENCH_BROKER_URL" in problem["msg"]
    assert "s3cr3t" not in problem["msg"]


@pytest.mark.parametrize("name", ["my bench", "a%41b", "a?b", "a#b", "it's", 'a"b', "a@b:c", "a&b=c;d", "ü"])
def test_a_data_directory_may_have_any_name(name: str) -> None:
    settings = Settings(data_dir=name)  # type: ignore[arg-type]
    assert make_url(settings.effective_database_url).database == str(settings.data_dir.resolve() / "gklbench.sqlite3")
