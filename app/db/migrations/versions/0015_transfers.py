"""Adversarial examples of one entry, tried on the network of another"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "transfers",
        sa.Column("id", number, primary_key=True),
        sa.Column("source_id", number, sa.ForeignKey("entries.id", ondelete="CASCADE"), nullable=False),
        sa.Column("target_id", number, sa.ForeignKey("entries.id", ondelete="CASCADE"), nullable=False),
        sa.Column("job_id", number, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("submitter", sa.String(100), nullable=False),
        sa.Column("source_certificate_sha256", sa.String(64), nullable=False),
        sa.Column("outcome", sa.JSON().with_variant(JSONB, "postgresql")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("job_id"),
        sa.CheckConstraint("source_id <> target_id", name="two_entries"),
    )
    op.create_index("ix_transfers_source_id", "transfers", ["source_id"])
    op.create_index("ix_transfers_target_id", "transfers", ["target_id"])


def downgrade() -> None:
    op.drop_table("transfers")
    # Earlier versions do not know this kind; they know a transfer that broke points as an external attack.
    op.execute("UPDATE jobs SET kind = 'external' WHERE kind = 'transfer'")
