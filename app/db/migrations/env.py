"""What alembic runs; the connection is handed in by `app.db.migrations`."""

from alembic import context
from sqlalchemy import text

from app.db.tables import Base

# Any number, as long as every version takes the same.
LOCK = 4_753_021

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    # SQLite cannot alter a table in place; alembic then copies it.
    render_as_batch=True,
)
with connection.begin():
    if connection.dialect.name == "postgresql":
        # A change to a large table takes as long as it takes, and so does waiting for another process that makes it.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    context.run_migrations()
