"""What alembic runs; the connection is handed in by `app.migrations`."""

from alembic import context

from app.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    # SQLite cannot alter a table in place; alembic then copies it.
    render_as_batch=True,
)
with connection.begin():
    context.run_migrations()
