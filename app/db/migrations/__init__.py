"""The database's schema, step by step. `upgrade` brings a database to the newest step."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.db.database import Database


def upgrade(database: Database, revision: str = "head") -> None:
    """Upgrade the schema; does nothing if it is current. A second process waits for the first."""
    config = _config()
    with _alone(database), database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def downgrade(database: Database, revision: str) -> None:
    """Downgrade the schema to an older step; `base` removes it."""
    config = _config()
    with _alone(database), database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """Keep other processes from changing a SQLite file's schema meanwhile. `env.py` takes PostgreSQL's lock.

    SQLite's own locks are not enough: switching a new file to write-ahead logging does not wait for other processes.
    """
    path = database.url.database if database.is_sqlite else None
    with ExitStack() as held:
        # If the lock file cannot be created, such as in a missing folder, SQLite reports what is wrong.
        with suppress(OSError):
            if path:
                file = held.enter_context(Path(f"{path}.migration-lock").open("ab"))
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_current(database: Database) -> bool:
    """Whether the schema is the one that this code expects."""
    with database.engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    return found == newest()


def newest() -> str:
    """The step that this code expects."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def knows(revision: str) -> bool:
    """Whether this version has a step of this name."""
    return any(step.revision == revision for step in ScriptDirectory.from_config(_config()).walk_revisions())


def _config() -> Config:
    config = Config()
    # In this file format a percent sign must be doubled.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
