"""RobustBench's mean corruption error beside Hendrycks'"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # `app.maintenance.upgrading` fills it in for entries that were measured here.
    with op.batch_alter_table("entries") as table:
        table.add_column(sa.Column("robustbench_mean_corruption_error", sa.Double()))
    op.execute(
        "UPDATE entries SET robustbench_mean_corruption_error = mean_corruption_error, mean_corruption_error = NULL "
        "WHERE source IS NOT NULL"
    )


def downgrade() -> None:
    op.execute("UPDATE entries SET mean_corruption_error = robustbench_mean_corruption_error WHERE source IS NOT NULL")
    with op.batch_alter_table("entries") as table:
        table.drop_column("robustbench_mean_corruption_error")
