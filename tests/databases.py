"""Which of the two systems a test runs on, where it does not run on both; and PostgreSQL's databases for tests."""

from __future__ import annotations

import itertools
import os

import psycopg
import pytest
from psycopg import sql

from tests.cluster import PostgresServer

either_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For a test to which it is all the same, or that never gets as far: it is tried on one."""

postgresql_only = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
"""For one about its server or its locks of single rows, or to which only real processes matter."""

_COLUMNS = """
SELECT md5(string_agg(concat_ws(' ', attrelid::regclass, attnum, attname, attisdropped), ',' ORDER BY attrelid, attnum))
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace
"""
_OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
_USED_SEQUENCES = "SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' AND last_value IS NOT NULL"


class EmptiedDatabase:
    """One database for one test after the other: emptying takes milliseconds, creating and dropping up to seconds.

    It is dropped and made anew after a test that changed the schema or left a connection open: what a killed process
    had begun may still be written.
    """

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.names = (f"test_{os.getpid()}_{number}" for number in itertools.count(1))
        self.name: str | None = None
        self.columns = ""
        self.tables: list[str] = []

    def fresh(self) -> str:
        """The address of a database with the schema and no rows."""
        if self.name is None:
            self.name = next(self.names)
            with psycopg.connect(self.server.create(self.name, template="template")) as connection:
                self.columns = _one(connection, _COLUMNS)
                self.tables = [name for (name,) in connection.execute(_TABLES)]
        return self.server.address(self.name)

    def give_back(self) -> None:
        """To be called after each test."""
        assert self.name is not None
        if not self._emptied(self.server.address(self.name)):
            self.server.drop(self.name)
            self.name = None

    def _emptied(self, url: str) -> bool:
        with psycopg.connect(url, autocommit=True) as connection:
            if _one(connection, _OTHERS) != "0" or _one(connection, _COLUMNS) != self.columns:
                return False
            queries = [
                sql.SQL("SELECT {} WHERE EXISTS (SELECT FROM {})").format(name, sql.Identifier(name))
                for name in self.tables
            ]
            used = [name for (name,) in connection.execute(sql.SQL(" UNION ALL ").join(queries))]
            # Foreign keys are not followed then, and tables can be emptied in any order.
            connection.execute("SET session_replication_role = replica")
            for name in used:
                connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(name)))
            for (name,) in connection.execute(_USED_SEQUENCES).fetchall():
                connection.execute("SELECT setval(%s, 1, false)", [name])
        return True


def _one(connection: psycopg.Connection, query: str) -> str:  # type: ignore[type-arg]
    row = connection.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return str(row[0])
