"""Evaluations with flags, certificates and provisional verdicts; any job's files; weights that were sent"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# The types of app.db.tables as they were at this step.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
TIME = sa.DateTime(timezone=True)

# SQLite copies a table to change a column; its checks have to be named again for the copy.
EVALUATION_CHECKS = (
    sa.CheckConstraint(
        "0 <= robust_correct AND robust_correct <= clean_correct", name="ck_evaluations_robust_within_clean"
    ),
    sa.CheckConstraint("clean_correct <= num_points AND num_points > 0", name="ck_evaluations_clean_within_points"),
)


def upgrade() -> None:
    _files_of_any_job()
    op.create_table(
        "uploads",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("format", sa.String(20), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_uploads"),
    )
    kept = _take_attack_results()
    with op.batch_alter_table("evaluations", table_args=EVALUATION_CHECKS) as table:
        table.alter_column("norm", existing_type=sa.String(10), nullable=True)
        table.alter_column("epsilon", existing_type=sa.Double(), nullable=True)
        table.alter_column("robust_correct", existing_type=sa.Integer(), nullable=True)
        table.add_column(sa.Column("is_provisional", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("robust_accuracy", sa.Double()))
        table.add_column(sa.Column("mean_corruption_error", sa.Double()))
        table.add_column(sa.Column("corruptions", JSON, nullable=False, server_default="[]"))
        table.add_column(sa.Column("flags", JSON, nullable=False, server_default="[]"))
        table.add_column(sa.Column("certificate_sha256", sa.String(64)))
    op.execute("UPDATE evaluations SET robust_accuracy = CAST(robust_correct AS DOUBLE PRECISION) / num_points")
    for column in ("is_provisional", "corruptions", "flags"):
        with op.batch_alter_table("evaluations", table_args=EVALUATION_CHECKS) as table:
            table.alter_column(column, server_default=None)
    _put_attack_results_back(kept)
    with op.batch_alter_table("attack_results") as table:
        table.add_column(sa.Column("discarded", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("loss", sa.String(20)))
        table.add_column(sa.Column("targets", sa.Integer()))


def _files_of_any_job() -> None:
    """What was `checkpoints`, without what the job's spec says already."""
    op.create_table(
        "job_files",
        sa.Column("id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("file", sa.String(200), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_files_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_job_files"),
        sa.UniqueConstraint("job_id", "kind", "number", name="uq_job_files_job_id_kind_number"),
    )
    op.create_index("ix_job_files_job_id", "job_files", ["job_id"])
    op.create_index("ix_job_files_sha256", "job_files", ["sha256"])
    op.execute(
        "INSERT INTO job_files (job_id, kind, number, file, sha256, size_bytes, created_at) "
        "SELECT job_id, kind, epoch, file, sha256, size_bytes, created_at FROM checkpoints ORDER BY id"
    )
    op.drop_table("checkpoints")


def _take_attack_results() -> list[sa.RowMapping]:
    """On SQLite the copied table's old version is dropped, and these rows, which refer to it, would go with it."""
    if op.get_bind().dialect.name != "sqlite":
        return []
    found = op.get_bind().execute(sa.text("SELECT * FROM attack_results")).mappings()
    return list(found)


def _put_attack_results_back(rows: list[sa.RowMapping]) -> None:
    columns = ("evaluation_id", "position", "attack", "points", "broken", "seconds")
    table = sa.table("attack_results", *(sa.column(name) for name in columns))
    if rows:
        op.get_bind().execute(sa.delete(table))
        op.get_bind().execute(sa.insert(table), [{name: row[name] for name in columns} for row in rows])


def downgrade() -> None:
    # What the older schema has no place for goes: evaluations without a norm, and provisional ones.
    gone = "(SELECT id FROM evaluations WHERE norm IS NULL OR robust_correct IS NULL OR is_provisional)"
    op.execute(f"DELETE FROM attack_results WHERE evaluation_id IN {gone}")
    op.execute("DELETE FROM evaluations WHERE norm IS NULL OR robust_correct IS NULL OR is_provisional")
    with op.batch_alter_table("attack_results") as table:
        for column in ("discarded", "loss", "targets"):
            table.drop_column(column)
    kept = _take_attack_results()
    with op.batch_alter_table("evaluations", table_args=EVALUATION_CHECKS) as table:
        for column in (
            "is_provisional",
            "robust_accuracy",
            "mean_corruption_error",
            "corruptions",
            "flags",
            "certificate_sha256",
        ):
            table.drop_column(column)
        table.alter_column("norm", existing_type=sa.String(10), nullable=False)
        table.alter_column("epsilon", existing_type=sa.Double(), nullable=False)
        table.alter_column("robust_correct", existing_type=sa.Integer(), nullable=False)
    _put_attack_results_back(kept)
    op.drop_table("uploads")
    op.create_table(
        "checkpoints",
        sa.Column("id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("file", sa.String(200), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("dataset", sa.String(50), nullable=False),
        sa.Column("architecture", sa.String(100), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_checkpoints_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoints"),
        sa.UniqueConstraint("job_id", "kind", "epoch", name="uq_checkpoints_job_id_kind_epoch"),
    )
    op.create_index("ix_checkpoints_job_id", "checkpoints", ["job_id"])
    op.create_index("ix_checkpoints_sha256", "checkpoints", ["sha256"])
    of_spec = "jobs.spec ->> '{}'"
    op.execute(
        "INSERT INTO checkpoints (job_id, kind, epoch, file, sha256, size_bytes, dataset, architecture, created_at) "
        "SELECT job_id, job_files.kind, number, file, sha256, size_bytes, "
        f"{of_spec.format('dataset')}, {of_spec.format('architecture')}, job_files.created_at "
        "FROM job_files JOIN jobs ON jobs.id = job_files.job_id "
        "WHERE job_files.kind IN ('resume', 'weights') ORDER BY job_files.id"
    )
    op.drop_table("job_files")
