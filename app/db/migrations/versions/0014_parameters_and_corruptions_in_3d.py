"""The number of parameters, and RobustBench's figures for corruptions in 3D"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from app.boards.naming import imported_parameters
from app.boards.robustbench import figures_in_3d
from gkl.catalog import num_parameters

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_ENTRIES_AT_ONCE = 500
_ENTRIES = sa.table(
    "entries",
    *(sa.column(name) for name in ("id", "dataset", "board", "slug", "architecture", "source", "model_id")),
    *(sa.column(name) for name in ("num_parameters", "corruptions_3d_accuracy", "corruptions_3d_error")),
)
_MODELS = sa.table("models", sa.column("id"), sa.column("architecture"))


def upgrade() -> None:
    with op.batch_alter_table("entries") as table:
        table.add_column(sa.Column("num_parameters", sa.BigInteger()))
        table.add_column(sa.Column("corruptions_3d_accuracy", sa.Double()))
        table.add_column(sa.Column("corruptions_3d_error", sa.Double()))
    _fill()


def _fill() -> None:
    connection = op.get_bind()
    columns = [_ENTRIES.c[name] for name in ("id", "dataset", "board", "slug", "architecture", "source")]
    query = (
        sa.select(*columns, _MODELS.c.architecture.label("measured"))
        .outerjoin(_MODELS, _MODELS.c.id == _ENTRIES.c.model_id)
        .where(sa.or_(_ENTRIES.c.source.is_not(None), _ENTRIES.c.model_id.is_not(None)))
        .order_by(_ENTRIES.c.id)
        .limit(_ENTRIES_AT_ONCE)
    )
    last = 0
    while rows := connection.execute(query.where(_ENTRIES.c.id > last)).all():
        last = rows[-1].id
        for row in rows:
            known: dict[str, float | None] = {}
            if row.source is None:
                known["num_parameters"] = num_parameters(row.measured, row.dataset)
            else:
                known["num_parameters"] = imported_parameters(row.dataset, row.board, row.slug, row.architecture)
                accuracy, error = figures_in_3d(row.board, json.loads(row.source))
                known |= {"corruptions_3d_accuracy": accuracy, "corruptions_3d_error": error}
            known = {name: value for name, value in known.items() if value is not None}
            if known:
                connection.execute(sa.update(_ENTRIES).where(_ENTRIES.c.id == row.id).values(known))


def downgrade() -> None:
    with op.batch_alter_table("entries") as table:
        for name in ("num_parameters", "corruptions_3d_accuracy", "corruptions_3d_error"):
            table.drop_column(name)
