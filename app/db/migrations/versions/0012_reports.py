"""Certificates of networks that only their owners have"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "reports",
        sa.Column(
            "entry_id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            sa.ForeignKey("entries.id", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column(
            "job_id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            sa.ForeignKey("jobs.id"),
            nullable=False,
        ),
        sa.Column("submitter", sa.String(100), nullable=False),
        sa.Column("dataset", sa.String(50), nullable=False),
        sa.Column("board", sa.String(50), nullable=False),
        sa.Column("weights_sha256", sa.String(64), nullable=False),
        sa.Column("certificate_sha256", sa.String(64), nullable=False),
        sa.Column("outcome", sa.JSON().with_variant(JSONB, "postgresql"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("job_id"),
        sa.UniqueConstraint("submitter", "weights_sha256", "dataset", "board"),
    )
    op.create_index("ix_reports_certificate_sha256", "reports", ["certificate_sha256"])


def downgrade() -> None:
    op.drop_table("reports")
