"""Tokens, what they may use, what was done with them; withdrawn entries; uploads in pieces"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# The types of app.db.tables as they were at this step.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("hint", sa.String(20), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(20), nullable=False),
        sa.Column("max_queued_jobs", sa.Integer()),
        sa.Column("max_running_jobs", sa.Integer()),
        sa.Column("gpu_hours_per_day", sa.Double()),
        sa.Column("max_upload_bytes", sa.BigInteger()),
        sa.Column("requests_per_minute", sa.Integer()),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.Column("last_used_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("sha256", name="uq_tokens_sha256"),
    )
    op.create_index("ix_tokens_name", "tokens", ["name"])
    op.create_table(
        "login_sessions",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("token_id", ID, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["token_id"], ["tokens.id"], name="fk_login_sessions_token_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sha256", name="pk_login_sessions"),
    )
    op.create_index("ix_login_sessions_token_id", "login_sessions", ["token_id"])
    op.create_table(
        "audit",
        sa.Column("id", ID, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("actor", sa.String(100), nullable=False),
        sa.Column("token_id", ID),
        sa.Column("action", sa.String(50), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("detail", JSON, nullable=False),
        sa.ForeignKeyConstraint(["token_id"], ["tokens.id"], name="fk_audit_token_id", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_created_at", "audit", ["created_at"])
    op.create_table(
        "worker_time",
        sa.Column("submitter", sa.String(100), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("submitter", "day", name="pk_worker_time"),
    )
    op.create_table(
        "partial_uploads",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("submitter", sa.String(100), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64)),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("touched_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_partial_uploads"),
    )
    op.create_index("ix_partial_uploads_submitter", "partial_uploads", ["submitter"])
    op.create_index("ix_partial_uploads_touched_at", "partial_uploads", ["touched_at"])
    op.create_table(
        "upload_senders",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("submitter", sa.String(100), nullable=False),
        sa.ForeignKeyConstraint(["sha256"], ["uploads.sha256"], name="fk_upload_senders_sha256", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sha256", "submitter", name="pk_upload_senders"),
    )
    op.create_index("ix_upload_senders_submitter", "upload_senders", ["submitter"])
    op.add_column("entries", sa.Column("withdrawn_at", TIME))
    op.add_column("entries", sa.Column("withdrawn_reason", sa.Text()))


def downgrade() -> None:
    op.drop_column("entries", "withdrawn_reason")
    op.drop_column("entries", "withdrawn_at")
    # What the older schema has no kind for.
    op.execute("DELETE FROM job_files WHERE kind = 'converted'")
    for table in ("upload_senders", "partial_uploads", "worker_time", "audit", "login_sessions", "tokens"):
        op.drop_table(table)
