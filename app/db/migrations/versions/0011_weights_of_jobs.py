"""Which weights a job measures, to be looked for"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("weights_sha256", sa.String(64)))
    op.create_index("ix_jobs_weights_sha256", "jobs", ["weights_sha256"])
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    weights = "spec ->> 'weights'" if is_postgresql else "json_extract(spec, '$.weights')"
    # Published weights are named by a word instead of a sha256.
    op.execute(f"UPDATE jobs SET weights_sha256 = {weights} WHERE length({weights}) = 64")


def downgrade() -> None:
    op.drop_index("ix_jobs_weights_sha256", "jobs")
    # In place, not with a copy of the table, as alembic makes for SQLite: other tables refer to it.
    op.execute("ALTER TABLE jobs DROP COLUMN weights_sha256")
