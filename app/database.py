"""Engine and transactions, the same for SQLite and PostgreSQL."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, create_engine, event, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0
_POOL_SIZE = 20

DATABASE_AWAY = (OperationalError, InterfaceError)
"""What a transaction raises when the server is gone, restarting, or locked for too long. Nothing was written, except
where the answer to a commit was lost."""

# A server that does not answer must not hold a process for ever, nor a process that is frozen in a transaction the
# server's rows, nor a request that asks for much the server.
_POSTGRESQL = {"connect_timeout": 10, "tcp_user_timeout": 30_000, "keepalives_idle": 30}
_POSTGRESQL_SESSION = "-c idle_in_transaction_session_timeout=20s -c lock_timeout=30s -c statement_timeout=60s"
_T = TypeVar("_T")


class Database:
    """Opens transactions. `reading` may run beside writers; `writing` sees and keeps out other writers.

    Nothing connects until the first transaction.
    """

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.url.drivername == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        self.engine = create_engine(
            self.url,
            pool_pre_ping=not self.is_sqlite,
            connect_args={} if self.is_sqlite else _postgresql_options(self.url),
            # A crowd of requests is served in turn; PostgreSQL's default limit is 100 connections for everybody.
            pool_size=_POOL_SIZE,
            max_overflow=0,
            # An error's text goes to the log, what people sent does not.
            hide_parameters=True,
        )
        if self.is_sqlite:
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self._read = sessionmaker(self.engine, expire_on_commit=False)
        self._write = sessionmaker(self.engine.execution_options(gklbench_writing=True), expire_on_commit=False)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with _away_recognized(), self._read() as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction: committed when the block ends, rolled back if it raises."""
        with _away_recognized(), self._write.begin() as session:
            yield session

    def write_patiently(self, change: Callable[[Session], _T], *, give_up: Callable[[], bool]) -> _T:
        """Run `change` in a transaction of its own, again and again while the database is away.

        Raises:
            OperationalError, InterfaceError: it is still away when `give_up` says so.
        """

        def write() -> _T:
            with self.writing() as session:
                return change(session)

        return self.patiently(write, give_up=give_up)

    def patiently(self, use: Callable[[], _T], *, give_up: Callable[[], bool]) -> _T:
        """Call `use`, which opens its own transactions, again and again while the database is away."""
        while True:
            try:
                return use()
            except DATABASE_AWAY as error:
                if give_up():
                    raise
                _log.warning("the database cannot be used (%s); trying again", error.orig)
                time.sleep(_RETRY_SECONDS)

    def close(self) -> None:
        self.engine.dispose()


def _postgresql_options(url: URL) -> dict[str, Any]:
    """Ours where the address says nothing else; the rest of what it says SQLAlchemy passes on."""
    ours: dict[str, Any] = {name: value for name, value in _POSTGRESQL.items() if name not in url.query}
    given = url.query.get("options", "")
    return ours | {"options": f"{_POSTGRESQL_SESSION} {given if isinstance(given, str) else ' '.join(given)}".strip()}


@contextmanager
def _away_recognized() -> Iterator[None]:
    """
    Raises:
        OperationalError: in place of the errors that PostgreSQL files under others: a transaction that it ended
            because this process was frozen in it, and a server that is only read while another takes its place.
    """
    try:
        yield
    except InternalError as error:
        if getattr(error.orig, "sqlstate", None) not in ("25P03", "25006"):
            raise
        raise OperationalError(error.statement, error.params, error.orig or error) from error


def _configure_sqlite(connection: Any, _: Any) -> None:
    # The driver's own BEGIN comes too late for a consistent read-then-write; `_begin_sqlite` sends ours.
    connection.isolation_level = None
    cursor = connection.cursor()
    # Readers and one writer side by side; wait for another writer instead of failing at once.
    cursor.execute("PRAGMA journal_mode = WAL")
    # A job that was accepted survives a power cut.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA busy_timeout = 15000")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a writer fails when another wrote meanwhile; IMMEDIATE waits.
    writing = connection.get_execution_options().get("gklbench_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def insert_into(session: Session, table: type[Any]) -> Any:
    """An INSERT that knows what to do on a conflict, which each of the two databases has of its own."""
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    return postgresql.insert(table) if is_postgresql else sqlite.insert(table)


def database_now(session: Session) -> datetime:
    """The database's clock: the one clock on which leases of all hosts are judged."""
    if session.get_bind().dialect.name == "sqlite":
        raw = session.scalar(text("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')"))
        return datetime.fromisoformat(str(raw)).replace(tzinfo=UTC)
    now: datetime = session.scalars(select(func.clock_timestamp())).one()
    return now.astimezone(UTC)
