"""A model is a network of a file: weights_key, where the file holds several"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

UNIQUE = "uq_models_weights_sha256_weights_key_architecture"
COLUMNS = ("id", "name", "dataset", "architecture", "loss", "weights_sha256", "train_job_id", "created_at")


def upgrade() -> None:
    _changed(_add_key)


def downgrade() -> None:
    # The older schema has one model per file: keep the one that was evaluated first.
    gone = "(SELECT id FROM models WHERE id NOT IN (SELECT min(id) FROM models GROUP BY weights_sha256))"
    op.execute(f"DELETE FROM external_attacks WHERE entry_id IN (SELECT id FROM entries WHERE model_id IN {gone})")
    op.execute(f"DELETE FROM entries WHERE model_id IN {gone}")
    op.execute(
        f"DELETE FROM attack_results WHERE evaluation_id IN (SELECT id FROM evaluations WHERE model_id IN {gone})"
    )
    op.execute(f"DELETE FROM evaluations WHERE model_id IN {gone}")
    op.execute("DELETE FROM models WHERE id NOT IN (SELECT min(id) FROM models GROUP BY weights_sha256)")
    _changed(_drop_key)


def _add_key() -> None:
    with op.batch_alter_table("models") as table:
        table.add_column(sa.Column("weights_key", sa.String(200), nullable=False, server_default=""))
        table.drop_constraint("uq_models_weights_sha256", type_="unique")
        table.create_unique_constraint(UNIQUE, ["weights_sha256", "weights_key", "architecture"])


def _drop_key() -> None:
    with op.batch_alter_table("models") as table:
        table.drop_constraint(UNIQUE, type_="unique")
        table.drop_column("weights_key")
        table.create_unique_constraint("uq_models_weights_sha256", ["weights_sha256"])


def _changed(change: Callable[[], None]) -> None:
    """SQLite makes the table anew: its rows are taken out and put back, so that what refers to them finds them."""
    if op.get_bind().dialect.name != "sqlite":
        change()
        return
    names = ", ".join(COLUMNS)
    op.execute("PRAGMA defer_foreign_keys = ON")
    op.execute(f"CREATE TEMPORARY TABLE kept AS SELECT {names} FROM models")
    op.execute("DELETE FROM models")
    change()
    op.execute(f"INSERT INTO models ({names}) SELECT {names} FROM kept")
    op.execute("DROP TABLE kept")
