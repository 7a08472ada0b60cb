"""What a session of each database is told."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.database import Database

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@on_postgresql
def test_a_statement_that_takes_too_long_is_ended(database_url: str) -> None:
    database = Database(database_url)
    with database.reading() as session:
        assert session.scalar(text("SHOW statement_timeout")) == "1min"
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
