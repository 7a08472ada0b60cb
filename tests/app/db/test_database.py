"""What a session of each database is told."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.db.database import Database
from tests.cluster import PostgresServer, until

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@on_postgresql
def test_a_statement_that_takes_too_long_is_ended(database_url: str) -> None:
    database = Database(database_url)
    with database.reading() as session:
        assert session.scalar(text("SHOW statement_timeout")) == "30s"
        assert session.scalar(text("SHOW idle_in_transaction_session_timeout")) == "20s"
    database.close()
    # What an address says goes before.
    joint = "&" if "?" in database_url else "?"
    hasty = Database(f"{database_url}{joint}options=-c%20statement_timeout%3D200ms")
    started = time.monotonic()
    with pytest.raises(OperationalError, match="statement timeout"), hasty.reading() as session:
        session.execute(text("SELECT pg_sleep(20)"))
    assert time.monotonic() - started < 10
    hasty.close()


@on_postgresql
def test_a_server_that_is_frozen_is_away_and_back_at_once(database_url: str, postgres: PostgresServer) -> None:
    database = Database(database_url, patience_seconds=0.5)
    with database.reading() as session:
        session.execute(text("SELECT 1"))
    with postgres.frozen():
        seconds = []
        for _ in range(4):
            started = time.monotonic()
            with pytest.raises(OperationalError), database.reading() as session:
                session.execute(text("SELECT 1"))
            seconds.append(time.monotonic() - started)
        assert max(seconds) < 5
        # What was asked a moment ago is not asked again. The fastest of three counts: any of them may be held up.
        assert min(seconds[1:]) < 0.4
    until(lambda: answers(database))
    with pytest.raises(OperationalError, match="did not answer"), database.writing() as session:
        session.execute(text("CREATE TABLE half (number INTEGER)"))
        with postgres.frozen():
            session.execute(text("SELECT 1"))
    until(lambda: answers(database))
    with database.reading() as session:
        assert session.scalar(text("SELECT to_regclass('half')")) is None
    database.close()


@on_postgresql
def test_where_the_server_allows_few_connections_the_others_wait(database_url: str, postgres: PostgresServer) -> None:
    owner = Database(database_url)
    with owner.writing() as session:
        session.execute(text("DROP ROLE IF EXISTS few"))
        session.execute(text("CREATE ROLE few LOGIN CONNECTION LIMIT 2"))
    owner.close()
    database = Database(database_url.replace("//postgres:", "//few:"))

    def read(_: int) -> object:
        with database.reading() as session:
            return session.scalar(text("SELECT current_user"))

    with ThreadPoolExecutor(10) as threads:
        assert set(threads.map(read, range(60))) == {"few"}
    # And none is held for long that nobody uses.
    until(lambda: connections_of(database_url, "few") < 2)
    database.close()


def connections_of(database_url: str, role: str) -> int:
    database = Database(database_url)
    with database.reading() as session:
        found = session.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE usename = :role"), {"role": role})
    database.close()
    return int(found or 0)


def answers(database: Database) -> bool:
    try:
        with database.reading() as session:
            session.execute(text("SELECT 1"))
    except OperationalError:
        return False
    return True
