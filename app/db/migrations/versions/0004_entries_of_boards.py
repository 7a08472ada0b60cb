"""Entries: models on boards, measured here or imported"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# The types of app.db.tables as they were at this step.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    # `app.maintenance.upgrading.add_missing` adds the rows of earlier evaluations.
    op.create_table(
        "entries",
        sa.Column("id", ID, nullable=False),
        sa.Column("dataset", sa.String(50), nullable=False),
        sa.Column("board", sa.String(50), nullable=False),
        sa.Column("slug", sa.String(150), nullable=False),
        sa.Column("provenance", sa.String(20), nullable=False),
        sa.Column("model_id", ID),
        sa.Column("evaluation_id", ID),
        sa.Column("source", sa.Text()),
        sa.Column("anomalies", JSON, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("authors", sa.Text(), nullable=False),
        sa.Column("link", sa.Text(), nullable=False),
        sa.Column("venue", sa.Text(), nullable=False),
        sa.Column("venue_series", sa.Text(), nullable=False),
        sa.Column("year", sa.Integer()),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("loss", sa.String(50)),
        sa.Column("footnote", sa.Text(), nullable=False),
        sa.Column("extra_data", sa.Boolean()),
        sa.Column("synthetic_data", sa.Boolean(), nullable=False),
        sa.Column("unreliable", sa.Boolean(), nullable=False),
        sa.Column("is_provisional", sa.Boolean(), nullable=False),
        sa.Column("epsilon", sa.Double()),
        sa.Column("num_points", sa.Integer(), nullable=False),
        sa.Column("clean_accuracy", sa.Double()),
        sa.Column("autoattack_accuracy", sa.Double()),
        sa.Column("external_accuracy", sa.Double()),
        sa.Column("reported_accuracy", sa.Double()),
        sa.Column("robust_accuracy", sa.Double()),
        sa.Column("mean_corruption_error", sa.Double()),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("changed_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_entries_model_id"),
        sa.ForeignKeyConstraint(["evaluation_id"], ["evaluations.id"], name="fk_entries_evaluation_id"),
        sa.PrimaryKeyConstraint("id", name="pk_entries"),
        sa.UniqueConstraint("dataset", "board", "slug", name="uq_entries_dataset_board_slug"),
        sa.UniqueConstraint("model_id", "board", name="uq_entries_model_id_board"),
    )
    op.create_index("ix_entries_rank", "entries", ["dataset", "board", "robust_accuracy"])
    op.create_table(
        "external_attacks",
        sa.Column("id", ID, nullable=False),
        sa.Column("entry_id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("submitter", sa.String(100), nullable=False),
        sa.Column("examples", sa.Integer()),
        sa.Column("broken", sa.Integer()),
        sa.Column("robust_correct", sa.Integer()),
        sa.Column("certificate_sha256", sa.String(64)),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["entry_id"], ["entries.id"], name="fk_external_attacks_entry_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_external_attacks_job_id"),
        sa.PrimaryKeyConstraint("id", name="pk_external_attacks"),
        sa.UniqueConstraint("job_id", name="uq_external_attacks_job_id"),
    )
    op.create_index("ix_external_attacks_entry_id", "external_attacks", ["entry_id"])


def downgrade() -> None:
    op.drop_table("external_attacks")
    op.drop_table("entries")
    # What the older schema has no kind for.
    jobs = "(SELECT id FROM jobs WHERE kind = 'external')"
    for table in ("job_events", "job_files", "outbox", "idempotency_keys"):
        op.execute(f"DELETE FROM {table} WHERE job_id IN {jobs}")
    op.execute("DELETE FROM jobs WHERE kind = 'external'")
    op.execute("DELETE FROM job_files WHERE kind = 'examples'")
