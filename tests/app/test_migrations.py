from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from app import migrations
from app.database import Database
from app.tables import Base


def test_the_migrations_make_the_tables_that_the_code_declares(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_they_go_back_and_forth(database: Database) -> None:
    assert migrations.is_current(database)
    migrations.upgrade(database)
    migrations.downgrade(database, "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    assert not migrations.is_current(database)
    migrations.upgrade(database)
    assert migrations.is_current(database)
