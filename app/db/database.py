"""Engine and transactions, the same for SQLite and PostgreSQL."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg_pool import ConnectionPool
from sqlalchemy import URL, Connection, create_engine, event, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0
_POOL_SIZE = 20

DATABASE_AWAY = (OperationalError, InterfaceError)
"""Errors of a transaction if the server is down, restarting, silent, or locked for too long. Nothing was written,
unless only the answer to a commit was lost."""

# A process that freezes within a transaction must not hold its locks on the server for ever.
_POSTGRESQL = {"tcp_user_timeout": 30_000, "keepalives_idle": 30}
_PING_SECONDS = 3.0
_CONNECT_SECONDS = 4.0
# After a timeout, other threads do not wait for the server again during this time.
_SILENCE_SECONDS = 2.0
# A server may allow few connections, which others need too: unused ones are closed, one a second.
_IDLE_SECONDS = 1.0
_LONGEST_LOCK_SECONDS = 15.0
_T = TypeVar("_T")


class Database:
    """Opens transactions. `reading` may run in parallel with writers; `writing` excludes other writers.

    Connects to nothing before the first transaction. A server that accepts connections and then does not answer, such
    as a frozen one, counts as down: each wait has a timeout.
    """

    def __init__(self, url: str, *, patience_seconds: float = 30) -> None:
        """Prepare the engine.

        Args:
            url: the database's address, as SQLAlchemy writes it.
            patience_seconds: how long one statement may take.
        """
        self.url = make_url(url)
        self.patience_seconds = patience_seconds
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.url.drivername == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        self._connections: _Connections | None = None
        self.engine = self._make_engine()
        self._read = sessionmaker(self.engine, expire_on_commit=False)
        self._write = sessionmaker(self.engine.execution_options(gklbench_writing=True), expire_on_commit=False)

    def _make_engine(self) -> Engine:
        # Error texts go to the log, without the values that users sent.
        if self.is_sqlite:
            waits = min(self.patience_seconds, _LONGEST_LOCK_SECONDS)
            engine = create_engine(
                self.url, pool_size=_POOL_SIZE, max_overflow=0, pool_timeout=waits, hide_parameters=True
            )
            event.listen(engine, "connect", lambda connection, _: _configure_sqlite(connection, waits))
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        engine = create_engine(self.url, poolclass=NullPool, creator=self._connect, hide_parameters=True)
        options = _postgresql_options(self.url, self.patience_seconds)
        _, parameters = engine.dialect.create_connect_args(self.url)
        self._connections = _Connections(
            {**options, **parameters, "options": options["options"]}, self.patience_seconds
        )
        return engine

    def _connect(self) -> psycopg.Connection[Any]:
        assert self._connections is not None
        return self._connections.take()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with _away_recognized(), self._read() as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction: committed when the block ends, rolled back if it raises."""
        with _away_recognized(), self._write.begin() as session:
            yield session

    def check_can_write(self) -> None:
        """Check with a write that the database can be written.

        Raises:
            OperationalError, InterfaceError: it cannot: the disk may be full, or the server a read-only replica.
        """
        with self.writing() as session:
            session.execute(text("UPDATE alembic_version SET version_num = version_num"))

    def write_patiently(self, change: Callable[[Session], _T], *, give_up: Callable[[], bool]) -> _T:
        """Run `change` in a transaction of its own, and repeat it while the database is down.

        Raises:
            OperationalError, InterfaceError: it is still down when `give_up` returns True.
        """

        def write() -> _T:
            with self.writing() as session:
                return change(session)

        return self.patiently(write, give_up=give_up)

    def patiently(self, use: Callable[[], _T], *, give_up: Callable[[], bool]) -> _T:
        """Call `use`, which opens its own transactions, and repeat it while the database is down."""
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
        if self._connections is not None:
            self._connections.close()


def _postgresql_options(url: URL, patience_seconds: float) -> dict[str, Any]:
    """Our default options, unless the address has its own; SQLAlchemy passes on the rest of the address."""
    ours: dict[str, Any] = {name: value for name, value in _POSTGRESQL.items() if name not in url.query}
    if "connect_timeout" not in url.query:
        ours["connect_timeout"] = int(_CONNECT_SECONDS)
    session = {
        "idle_in_transaction_session_timeout": 20.0,
        "lock_timeout": min(patience_seconds / 2, 30),
        "statement_timeout": patience_seconds,
    }
    given = url.query.get("options", "")
    said = [f"-c {name}={1000 * seconds:.0f}" for name, seconds in session.items()]
    return ours | {"options": " ".join([*said, given if isinstance(given, str) else " ".join(given)]).strip()}


class _Patient(psycopg.Connection[Any]):
    """A connection with a timeout for silent servers, which no setting of the server offers."""

    answers_within: float = _CONNECT_SECONDS
    on_silence: Callable[[], None] | None = None

    def wait(self, gen: PQGen[_T], interval: float = 0.1, timeout: float | None = None) -> _T:
        limit = self.answers_within if timeout is None else timeout
        until = time.monotonic() + limit
        try:
            return super().wait(gen, interval, limit)
        except psycopg.OperationalError as error:
            if time.monotonic() < until or timeout is not None:
                raise
            # A late answer would belong to no statement any more, so close the connection.
            self.pgconn.finish()
            if self.on_silence is not None:
                self.on_silence()
            raise psycopg.OperationalError(f"the server did not answer within {limit:g} seconds") from error

    def add_notice_handler(self, callback: Callable[[psycopg.errors.Diagnostic], None]) -> None:
        # SQLAlchemy adds its handler each time that it takes this connection.
        if callback not in self._notice_handlers:
            super().add_notice_handler(callback)


class _Connections:
    """A pool of connections to a PostgreSQL server. If the server allows no more, callers wait for a free one."""

    def __init__(self, parameters: dict[str, Any], patience_seconds: float) -> None:
        # A second more than the server's own limit: a healthy server ends the statement itself.
        self._patience_seconds = patience_seconds + 1
        self._silent_until, self._heard_at = 0.0, 0.0
        self._opening = threading.Lock()
        self._pool: ConnectionPool[_Patient] | None = None
        self._parameters = parameters

    def take(self) -> _Patient:
        """A connection from the pool.

        Raises:
            psycopg.OperationalError: the server cannot be reached, or does not answer.
        """
        if time.monotonic() < self._silent_until:
            raise psycopg.OperationalError("the server did not answer a moment ago")
        pool, until = self._opened(), time.monotonic() + min(_CONNECT_SECONDS, self._patience_seconds)
        while True:
            try:
                connection = pool.getconn(timeout=max(0.1, until - time.monotonic()))
            except psycopg.OperationalError:
                # If the server answered others meanwhile, it is only busy.
                if time.monotonic() - self._heard_at > _CONNECT_SECONDS:
                    self._note_silence()
                raise
            connection.answers_within = min(_PING_SECONDS, self._patience_seconds)
            try:
                ConnectionPool.check_connection(connection)
            except psycopg.OperationalError:
                # The server was restarted: the pool's next connection may be newer.
                pool.putconn(connection)
                if time.monotonic() > until or time.monotonic() < self._silent_until:
                    raise
                continue
            self._heard_at = time.monotonic()
            connection.answers_within = self._patience_seconds
            return connection

    def close(self) -> None:
        with self._opening:
            if self._pool is not None:
                self._pool.close(timeout=1)
                self._pool = None

    def _opened(self) -> ConnectionPool[_Patient]:
        with self._opening:
            if self._pool is None:
                self._pool = ConnectionPool(
                    kwargs=self._parameters,
                    connection_class=_Patient,
                    configure=self._configure,
                    min_size=0,
                    max_size=_POOL_SIZE,
                    max_idle=_IDLE_SECONDS,
                    reconnect_timeout=_CONNECT_SECONDS,
                    # A connection that SQLAlchemy closes returns to the pool.
                    close_returns=True,
                    open=True,
                )
            return self._pool

    def _configure(self, connection: _Patient) -> None:
        connection.on_silence = self._note_silence

    def _note_silence(self) -> None:
        self._silent_until = time.monotonic() + _SILENCE_SECONDS


@contextmanager
def _away_recognized() -> Iterator[None]:
    """Turn errors that PostgreSQL classifies otherwise into those of `DATABASE_AWAY`.

    Raises:
        OperationalError: the server ended a transaction in which this process was frozen, or is read-only during a
            failover.
    """
    try:
        yield
    except InternalError as error:
        if getattr(error.orig, "sqlstate", None) not in ("25P03", "25006"):
            raise
        raise OperationalError(error.statement, error.params, error.orig or error) from error


def _configure_sqlite(connection: Any, waits_seconds: float) -> None:
    # The driver sends its BEGIN too late for a consistent read-then-write; `_begin_sqlite` sends ours.
    connection.isolation_level = None
    cursor = connection.cursor()
    # Readers and one writer in parallel; wait for another writer instead of failing at once.
    cursor.execute("PRAGMA journal_mode = WAL")
    # An accepted job survives a power cut.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute(f"PRAGMA busy_timeout = {1000 * waits_seconds:.0f}")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a writer fails when another wrote meanwhile; IMMEDIATE waits.
    writing = connection.get_execution_options().get("gklbench_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def insert_into(session: Session, table: type[Any]) -> Any:
    """An INSERT with ON CONFLICT, in the dialect of the session's database."""
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    return postgresql.insert(table) if is_postgresql else sqlite.insert(table)


def database_now(session: Session) -> datetime:
    """The time of the database's clock, by which the leases of all hosts are measured."""
    if session.get_bind().dialect.name == "sqlite":
        raw = session.scalar(text("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')"))
        return datetime.fromisoformat(str(raw)).replace(tzinfo=UTC)
    now: datetime = session.scalars(select(func.clock_timestamp())).one()
    return now.astimezone(UTC)
