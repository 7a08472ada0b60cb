from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select

from app import jobs
from app.boards import (
    listing,
    placing,
    ranking,
    robustbench,
)
from app.db import migrations
from app.db.database import Database
from app.db.tables import Base, Entry, Evaluation, FileKind, Job, JobFile, OutboxMessage
from app.maintenance import upgrading
from tests.app.boards.test_results import measure, train
from tests.app.boards.test_robustbench import CORRUPTED, LINF, contents
from tests.cluster import PostgresServer


def test_several_at_once_make_one_schema(tmp_path: Path, postgres: PostgresServer) -> None:
    """As `gklbench up` and `gklbench token create` do on a new data directory."""
    urls = [f"sqlite:///{tmp_path / 'new.sqlite3'}", postgres.create("new")]
    # Each waits until it is told, so that what it takes to start does not set them apart.
    code = """if True:
        import sys
        from app.db import migrations
        from app.maintenance import upgrading
        from app.db.database import Database
        databases = [Database(url) for url in sys.argv[1:]]
        print("ready", flush=True)
        sys.stdin.readline()
        for database in databases:
            upgrading.upgrade(database)
            assert migrations.is_current(database)
            database.close()
        """
    command = [sys.executable, "-c", code, *urls]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    postgres.drop("new")


def test_the_migrations_make_the_tables_that_the_code_declares(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_they_go_back_and_forth(database: Database) -> None:
    assert migrations.is_current(database)
    upgrading.upgrade(database)
    migrations.downgrade(database, "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    assert not migrations.is_current(database)
    upgrading.upgrade(database)
    assert migrations.is_current(database)


def test_a_running_and_a_queued_job_survive_the_step_to_shards(database: Database) -> None:
    migrations.downgrade(database, "0002")
    now = "2026-01-02 03:04:05"
    with database.engine.begin() as connection:
        for job_id, state, started in ((1, "queued", "NULL"), (2, "running", f"'{now}'")):
            connection.exec_driver_sql(
                "INSERT INTO jobs "
                "(id, kind, name, spec, state, priority, attempt, lost_leases, created_at, started_at) "
                f"VALUES ({job_id}, 'train', 'a', '{{}}', '{state}', 0, 1, 0, '{now}', {started})"
            )
        connection.exec_driver_sql(
            f"INSERT INTO job_events (job_id, type, data, created_at) VALUES (1, 'state', '{{}}', '{now}')"
        )
    upgrading.upgrade(database)
    with database.writing() as session:
        queued, running = session.get(Job, 1), session.get(Job, 2)
        assert queued is not None
        assert running is not None
        assert (queued.submitter, queued.due_at, queued.run_seconds) == ("anonymous", queued.created_at, 0)
        assert running.claimed_at == running.started_at
        assert session.scalars(select(OutboxMessage.job_id)).all() == [1]
        taken = jobs.claim(session, worker="w", lease=timedelta(seconds=90))
        assert taken is not None
        assert taken.job_id == 1
    migrations.downgrade(database, "0002")
    with database.engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar_one() == 2
        assert connection.exec_driver_sql("SELECT count(*) FROM job_events").scalar_one() == 2


def test_the_step_to_tiers_knows_what_is_withdrawn_and_what_is_not_believed(database: Database) -> None:
    for name, robust in (("Barred", 300), ("Withdrawn", 250), ("Second", 100), ("First", 200), ("Restored", 150)):
        measure(database, train(database, name), robust=robust)
    with database.writing() as session:
        found = {entry.name: entry for entry in session.scalars(select(Entry))}
        placing.withdraw(session, found["Withdrawn"].id, "a mistake")
        found["Barred"].unrankable_reason = found["Restored"].unrankable_reason = "gap: too much"
        found["Restored"].rank_note = "looked at"
    known = [(1, "First"), (2, "Restored"), (3, "Second"), (None, "Barred"), (None, "Withdrawn")]
    for _ in range(2):
        with database.reading() as session:
            rows = listing.search(session, ranking.board(session, "digits", "Linf"), listing.View())
            assert [(row.rank, row.entry.name) for row in rows] == known
        migrations.downgrade(database, "0009")
        upgrading.upgrade(database)


def test_the_step_to_parameters_fills_them_in(database: Database) -> None:
    measure(database, train(database, "Here"), robust=100)
    in_3d = {"dataset": "imagenet", "corruptions_acc_3d": "50.1", "corruptions_mce_3d": "61"}
    files = {
        "cifar10/Linf/Carmon2019Unlabeled.json": LINF,
        "cifar10/Linf/Unknown.json": LINF | {"architecture": "WideResNet-28-10-PSSiLU"},
        "imagenet/corruptions/AlexNet.json": CORRUPTED | in_3d,
    }
    robustbench.import_files(database, [(name, contents(info)) for name, info in files.items()])
    known = {
        "Here": (57_482, None, None),
        "Carmon2019Unlabeled": (38_119_866, None, None),
        "Unknown": (None, None, None),
        "AlexNet": (61_100_840, 0.501, 0.61),
    }
    for _ in range(2):
        with database.reading() as session:
            found = session.scalars(select(Entry)).all()
            figures = {e.slug: (e.num_parameters, e.corruptions_3d_accuracy, e.corruptions_3d_error) for e in found}
        assert figures == known
        migrations.downgrade(database, "0012")
        upgrading.upgrade(database)


def test_rows_survive_the_way_forward_and_back(database: Database) -> None:
    """From the first schema, with a row in each table, to the newest, and back."""
    migrations.downgrade(database, "0001")
    now = "2026-01-02 03:04:05"
    sha, spec = "a" * 64, '{"dataset": "digits", "architecture": "small_cnn"}'
    with database.engine.begin() as connection:
        for statement in (
            "INSERT INTO jobs (id, kind, name, spec, state, priority, attempt, lost_leases, created_at) VALUES "
            f"(1, 'train', 'a', '{spec}', 'succeeded', 0, 1, 0, '{now}')",
            "INSERT INTO checkpoints (id, job_id, kind, epoch, file, sha256, size_bytes, dataset, architecture, "
            f"created_at) VALUES (1, 1, 'weights', 7, 'w', '{sha}', 10, 'digits', 'small_cnn', '{now}')",
            "INSERT INTO models (id, name, dataset, architecture, weights_sha256, train_job_id, created_at) VALUES "
            f"(1, 'a', 'digits', 'small_cnn', '{sha}', 1, '{now}')",
            "INSERT INTO evaluations (id, model_id, job_id, board, norm, epsilon, protocol, num_points, is_complete, "
            "clean_correct, robust_correct, seconds, manifest, created_at) VALUES "
            f"(1, 1, 1, 'Linf', 'Linf', 0.2, 'standard', 360, true, 350, 90, 1.5, '{{}}', '{now}')",
            "INSERT INTO attack_results (evaluation_id, position, attack, points, broken, seconds) VALUES "
            "(1, 0, 'APGD-CE', 350, 260, 1.5)",
        ):
            connection.exec_driver_sql(statement)
    upgrading.upgrade(database)
    with database.reading() as session:
        evaluation = session.scalars(select(Evaluation)).one()
        assert evaluation.robust_accuracy == 0.25
        assert (evaluation.flags, evaluation.corruptions, evaluation.is_provisional) == ([], [], False)
        assert [(a.attack, a.broken, a.discarded) for a in evaluation.attacks] == [("APGD-CE", 260, 0)]
        file = session.scalars(select(JobFile)).one()
        assert (file.kind, file.number, file.sha256) == (FileKind.WEIGHTS, 7, sha)
    migrations.downgrade(database, "0001")
    with database.engine.begin() as connection:
        found = connection.exec_driver_sql("SELECT epoch, dataset, architecture FROM checkpoints").one()
        assert tuple(found) == (7, "digits", "small_cnn")
        assert connection.exec_driver_sql("SELECT robust_correct, norm FROM evaluations").one() == (90, "Linf")
        assert connection.exec_driver_sql("SELECT broken FROM attack_results").scalar_one() == 260


def test_two_networks_of_a_file_are_one_model_in_an_older_schema(database: Database) -> None:
    """The first one's rows stay, with all that refers to them."""
    sha, now = "a" * 64, "2026-01-02 03:04:05"
    with database.engine.begin() as connection:
        for number, key in ((1, "state_dict"), (2, "ema")):
            for statement in (
                "INSERT INTO jobs (id, kind, name, spec, state, priority, attempt, lost_leases, created_at) VALUES "
                f"({number}, 'evaluate', 'a', '{{}}', 'succeeded', 0, 1, 0, '{now}')",
                "INSERT INTO models (id, name, dataset, architecture, weights_sha256, weights_key, created_at) VALUES "
                f"({number}, 'a', 'digits', 'small_cnn', '{sha}', '{key}', '{now}')",
                "INSERT INTO evaluations (id, model_id, job_id, board, norm, epsilon, protocol, num_points, "
                "is_complete, is_provisional, clean_correct, robust_correct, robust_accuracy, corruptions, flags, "
                "seconds, manifest, created_at) VALUES "
                f"({number}, {number}, {number}, 'Linf', 'Linf', 0.2, 'standard', "
                "360, true, false, "
                f"350, 90, 0.25, '[]', '[]', 1.5, '{{}}', '{now}')",
                "INSERT INTO attack_results (evaluation_id, position, attack, points, broken, seconds, discarded) "
                f"VALUES ({number}, 0, 'APGD-CE', 350, 260, 1.5, 0)",
            ):
                connection.exec_driver_sql(statement)
    with database.writing() as session:
        upgrading.add_missing(session)
    for _ in range(2):
        migrations.downgrade(database, "0006")
        with database.engine.begin() as connection:
            for table in ("models", "evaluations", "entries", "attack_results"):
                assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one() == 1, table
        upgrading.upgrade(database)
    with database.reading() as session:
        evaluation = session.scalars(select(Evaluation)).one()
        assert (evaluation.model.id, evaluation.model.weights_key) == (1, "")
