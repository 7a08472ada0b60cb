"""The number of parameters, and RobustBench's figures for corruptions in 3D"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # `app.maintenance.upgrading` fills them in.
    with op.batch_alter_table("entries") as table:
        table.add_column(sa.Column("num_parameters", sa.BigInteger()))
        table.add_column(sa.Column("corruptions_3d_accuracy", sa.Double()))
        table.add_column(sa.Column("corruptions_3d_error", sa.Double()))


def downgrade() -> None:
    with op.batch_alter_table("entries") as table:
        for name in ("num_parameters", "corruptions_3d_accuracy", "corruptions_3d_error"):
            table.drop_column(name)
