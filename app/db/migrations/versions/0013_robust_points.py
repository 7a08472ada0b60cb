"""Which points each certificate's network withstands, so that boards can be tested pair by pair"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # `app.boards.robust_points.record_missing` fills it in for certificates of earlier versions.
    op.create_table(
        "robust_points",
        sa.Column("certificate_sha256", sa.String(64), primary_key=True),
        sa.Column("num_points", sa.Integer, nullable=False),
        sa.Column("bits", sa.LargeBinary, nullable=False),
        sa.CheckConstraint("num_points > 0", name="robust_points_has_points"),
    )


def downgrade() -> None:
    op.drop_table("robust_points")
