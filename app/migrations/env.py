"""What alembic runs; the connection is handed in by `app.migrations`."""

from alembic import context
from sqlalchemy import text

from app.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    # SQLite cannot alter a table in place; alembic then copies it.
    render_as_batch=True,
)
with connection.begin():
    if connection.dialect.name == "postgresql":
        # A change to a large table takes as long as it takes.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
    context.run_migrations()
