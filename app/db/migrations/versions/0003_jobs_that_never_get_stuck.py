"""Submitters, due times, shards, run time and resources of jobs; the workers"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# The types of app.db.tables as they were at this step.
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "submitters",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("last_claimed_at", TIME),
        sa.PrimaryKeyConstraint("name", name="pk_submitters"),
    )
    op.execute("INSERT INTO submitters (name) SELECT 'anonymous' WHERE EXISTS (SELECT 1 FROM jobs)")
    op.create_table(
        "workers",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("host", sa.String(200), nullable=False),
        sa.Column("device", sa.String(200), nullable=False),
        sa.Column("version", sa.String(50), nullable=False),
        sa.Column("is_draining", sa.Boolean(), nullable=False),
        sa.Column("problem", sa.String(500)),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("heard_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_workers"),
    )
    op.create_index("ix_workers_heard_at", "workers", ["heard_at"])

    # Columns are added in place: SQLite's copy of a table would take the rows along that refer to it.
    op.drop_index("ix_jobs_claim", "jobs")
    op.add_column("jobs", sa.Column("submitter", sa.String(100), nullable=False, server_default="anonymous"))
    op.add_column("jobs", sa.Column("shard_index", sa.Integer()))
    op.add_column("jobs", sa.Column("due_at", TIME))
    op.add_column("jobs", sa.Column("claimed_at", TIME))
    op.add_column("jobs", sa.Column("run_seconds", sa.Double(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("resources", JSON))
    op.create_index("ix_jobs_claim", "jobs", ["state", "submitter", sa.text("priority DESC"), "id"])
    op.create_index("ix_jobs_state_id", "jobs", ["state", "id"])
    op.execute("UPDATE jobs SET due_at = created_at WHERE state = 'queued'")
    op.execute("UPDATE jobs SET claimed_at = started_at WHERE state IN ('running', 'cancelling')")

    # A wake-up that is owed is made again by the relay's first round.
    op.drop_table("outbox")
    _create_outbox(sa.Column("due_at", TIME, nullable=False))
    op.create_index("ix_outbox_published_at", "outbox", ["published_at"])
    op.execute(
        "INSERT INTO outbox (job_id, created_at, due_at) SELECT id, created_at, created_at FROM jobs "
        "WHERE state = 'queued'"
    )


def downgrade() -> None:
    op.drop_table("outbox")
    _create_outbox()
    op.execute("INSERT INTO outbox (job_id, created_at) SELECT id, created_at FROM jobs WHERE state = 'queued'")
    # What the older schema has no kind for: a shard's work is done again by the whole evaluation.
    shards = "(SELECT id FROM jobs WHERE kind = 'shard')"
    for table in ("job_events", "job_files", "outbox", "idempotency_keys"):
        op.execute(f"DELETE FROM {table} WHERE job_id IN {shards}")
    op.execute("DELETE FROM jobs WHERE kind = 'shard'")
    for index in ("ix_jobs_claim", "ix_jobs_state_id"):
        op.drop_index(index, "jobs")
    for column in ("submitter", "shard_index", "due_at", "claimed_at", "run_seconds", "resources"):
        op.drop_column("jobs", column)
    op.create_index("ix_jobs_claim", "jobs", ["state", sa.text("priority DESC"), "id"])
    op.drop_table("workers")
    op.drop_table("submitters")


def _create_outbox(*more: sa.Column[object]) -> None:
    identity = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "outbox",
        sa.Column("id", identity, nullable=False),
        sa.Column("job_id", identity, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("published_at", TIME),
        *more,
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_outbox_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    op.create_index("ix_outbox_job_id", "outbox", ["job_id"])
