"""Distillation: the job whose network a student waits for, and the teacher of a model"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.add_column("jobs", sa.Column("awaits_id", number, nullable=True))
    op.create_index("ix_jobs_awaits_id", "jobs", ["awaits_id"])
    op.add_column("models", sa.Column("teacher_architecture", sa.String(100), nullable=True))
    op.add_column("models", sa.Column("teacher_sha256", sa.String(64), nullable=True))
    op.add_column("models", sa.Column("teacher_key", sa.String(200), nullable=False, server_default=""))
    op.add_column("models", sa.Column("teacher_accuracy", sa.Double(), nullable=True))


def downgrade() -> None:
    for name in ("teacher_accuracy", "teacher_key", "teacher_sha256", "teacher_architecture"):
        op.drop_column("models", name)
    op.drop_index("ix_jobs_awaits_id", "jobs")
    op.drop_column("jobs", "awaits_id")
    # Earlier versions have no such kind, and could run none of these.
    op.execute("UPDATE jobs SET kind = 'train' WHERE kind = 'distill'")
