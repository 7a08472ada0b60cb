"""Sums for metrics; what boards are ordered by in one index, and what their revision is made of in another"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # `app.jobs.metric_sums.count_new_events` fills them from earlier events.
    op.create_table(
        "metric_sums",
        sa.Column("name", sa.String(20), nullable=False),
        sa.Column("label", sa.String(100), nullable=False),
        sa.Column("code", sa.String(50), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "label", "code", name="pk_metric_sums"),
    )
    op.create_table(
        "metric_runs",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_metric_runs"),
    )
    with op.batch_alter_table("entries") as table:
        table.add_column(sa.Column("tier", sa.Integer(), nullable=False, server_default="0"))
    op.execute("UPDATE entries SET tier = 1 WHERE unrankable_reason IS NOT NULL AND rank_note IS NULL")
    op.execute("UPDATE entries SET tier = 2 WHERE withdrawn_at IS NOT NULL")
    op.drop_index("ix_entries_rank", "entries")
    order = (sa.text("robust_accuracy DESC"), sa.text("clean_accuracy DESC"), "id")
    shown = ("is_provisional", "year", "provenance")
    op.create_index("ix_entries_best", "entries", ["dataset", "board", "tier", *order, *shown])
    op.create_index("ix_entries_revision", "entries", ["dataset", "board", "id", "changed_at"])
    op.create_index("ix_jobs_kind_state", "jobs", ["kind", "state"])


def downgrade() -> None:
    op.drop_index("ix_jobs_kind_state", "jobs")
    op.drop_index("ix_entries_revision", "entries")
    op.drop_index("ix_entries_best", "entries")
    op.create_index("ix_entries_rank", "entries", ["dataset", "board", "robust_accuracy"])
    # In place, not with a copy of the table, as alembic makes for SQLite: rows that refer to it would be deleted.
    op.execute("ALTER TABLE entries DROP COLUMN tier")
    op.drop_table("metric_runs")
    op.drop_table("metric_sums")
