"""What weights that are sent hold; which data sets and published weights workers have, and what their devices do"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("uploads", sa.Column("contents", sa.LargeBinary(), nullable=True))
    for name in ("datasets", "published", "load"):
        op.add_column("workers", sa.Column(name, sa.JSON().with_variant(JSONB, "postgresql"), nullable=True))
    op.create_table(
        "worker_loads",
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("busy", sa.Double(), nullable=True),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("worker", "taken_at", name="pk_worker_loads"),
    )
    op.create_index("ix_worker_loads_taken_at", "worker_loads", ["taken_at"])


def downgrade() -> None:
    op.drop_table("worker_loads")
    for name in ("load", "published", "datasets"):
        op.drop_column("workers", name)
    op.drop_column("uploads", "contents")
