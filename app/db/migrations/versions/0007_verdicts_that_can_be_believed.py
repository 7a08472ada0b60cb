"""What was checked of a network beside its verdict, and entries whose figure cannot be believed"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# The type of app.db.tables as it was at this step.
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    # Empty in older rows: their networks were not checked, and they keep their ranks.
    op.add_column("evaluations", sa.Column("checks", JSON, nullable=False, server_default="[]"))
    op.add_column("evaluations", sa.Column("checks_seed", sa.BigInteger(), nullable=True))
    op.add_column("entries", sa.Column("unrankable_reason", sa.Text(), nullable=True))
    op.add_column("entries", sa.Column("rank_note", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("entries", "rank_note")
    op.drop_column("entries", "unrankable_reason")
    op.drop_column("evaluations", "checks_seed")
    op.drop_column("evaluations", "checks")
