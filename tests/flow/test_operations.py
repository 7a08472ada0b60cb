"""What docs/operations.md tells the owner of a host to do, done."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import httpx2
import pytest

from app.core.settings import Settings
from app.jobs import job_log
from gkl.answers import JobState
from gkl.spec import InnerMaximization, TrainSpec
from tests.cluster import Cluster, PostgresServer, until
from tests.commands import run
from tests.specs import tiny_train_spec


def training() -> TrainSpec:
    """A few seconds long, saved several times a second."""
    return tiny_train_spec(epochs=40, inner_maximization=InnerMaximization(num_steps=2), evaluation=None)


def served(cluster: Cluster) -> dict[str, bytes]:
    """What anybody can see of the boards, to the byte."""
    addresses = [
        "/leaderboards/digits/Linf-0.9",
        *(f"/api/v1/leaderboards/digits/Linf-0.9/export/{name}" for name in ("csv", "json")),
        *(f"/api/v1/entries/1{what}" for what in ("", "/certificate", "/points", "/model_info.json")),
        "/api/v1/models/1",
        "/api/v1/jobs/1/log",
    ]
    return {address: httpx2.get(f"{cluster.url}{address}").raise_for_status().content for address in addresses}


@pytest.mark.long
def test_a_restored_copy_serves_the_same_board_and_goes_on(
    database_url: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Backed up while a job runs: first the database, then the artifacts, as files are only ever added."""
    with Cluster(tmp_path / "first", database_url) as cluster:
        cluster.start("api", "relay", "worker")
        finished = cluster.send(tiny_train_spec())
        (follow_up,) = cluster.wait_for(finished).children
        cluster.wait_for(follow_up.id)
        interrupted = cluster.send(training())
        until(lambda: cluster.saved(interrupted))
        before = served(cluster)
        (tmp_path / "second" / "data").mkdir(parents=True)
        if cluster.database.is_sqlite:
            restored_url = _copy_as_the_guide_says(cluster, tmp_path)
        else:
            cluster.stop("relay")
            restored_url = _copy_postgresql(request.getfixturevalue("postgres"), database_url)
            target = tmp_path / "artifacts.tar"
            subprocess.run(["sh", "-c", _tar_of_the_guide(cluster, target)], check=True)
            subprocess.run(["tar", "-C", str(tmp_path / "second" / "data"), "-xf", str(target)], check=True)
    with Cluster(tmp_path / "second", restored_url) as restored:
        assert restored.job(interrupted).state is JobState.RUNNING, "so the backup says"
        restored.start("api", "relay", "worker")
        assert served(restored) == before
        job = restored.wait_for(interrupted)
        assert (job.attempt, job.lost_leases) == (2, 1), "its worker is not there any more"
        with restored.database.reading() as session:
            assert "resumed after epoch" in job_log.tail(session, interrupted, 10_000)


def _tar_of_the_guide(cluster: Cluster, target: Path) -> str:
    guide = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    command = guide.partition("--entrypoint sh relay -c \\\n      '")[2].partition("' > backup/artifacts.tar")[0]
    assert "tar -cf" in command
    return f"({command.replace('/var/lib/gklbench', str(cluster.settings.data_dir))}) > {target}"


def _copy_as_the_guide_says(cluster: Cluster, tmp_path: Path) -> str:
    """By the commands of docs/operations.md, on this service's files."""
    guide = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    (commands,) = [part for part in guide.split("\n\n") if "sqlite3.connect('gklbench-data" in part]
    assert "flock" in commands
    database, data_dir = str(cluster.database.url.database), str(cluster.settings.data_dir)
    commands = commands.replace("gklbench-data/gklbench.sqlite3", database).replace("gklbench-data", data_dir)
    subprocess.run(["sh", "-e", "-c", commands], cwd=tmp_path / "second", check=True)
    (tmp_path / "second" / "backup-artifacts").rename(tmp_path / "second" / "data" / "artifacts")
    return f"sqlite:///{tmp_path / 'second' / 'backup.sqlite3'}"


def _copy_postgresql(server: PostgresServer, url: str) -> str:
    # Its name stays its own: the server is that of other tests too.
    restored = server.create(f"restored_{os.getpid()}")
    # They run as the server's user, which may write there.
    with tempfile.TemporaryDirectory(prefix="pg") as directory:
        Path(directory).chmod(0o777)
        dump = f"{directory}/gklbench.dump"
        server.run("pg_dump", "--format=custom", f"--file={dump}", f"--dbname={url}")
        server.run("pg_restore", "--exit-on-error", f"--dbname={restored}", dump)
    return restored


@pytest.mark.long
def test_an_upgrade_costs_a_running_job_nothing(database_url: str, tmp_path: Path) -> None:
    """Everything of this service stops, the schema moves, everything starts; here from the step before, and back."""
    with Cluster(tmp_path, database_url) as cluster:
        cluster.start("api", "relay", "worker")
        job_id = cluster.send(training())
        until(lambda: cluster.saved(job_id))
        for name in ("worker", "relay", "api"):
            cluster.stop(name)
        assert cluster.job(job_id).state is JobState.QUEUED
        assert "is at step 0005" in gklbench(cluster.settings, "migrate", "--back-to", "0005")
        assert "is up to date, at step" in gklbench(cluster.settings, "migrate")
        cluster.start("api", "relay", "worker")
        job = cluster.wait_for(job_id)
        assert (job.attempt, job.lost_leases) == (2, 0)
        assert cluster.history(job_id) == ["queued", "running", "queued", "running", "succeeded"]


def test_a_service_does_not_start_on_another_versions_schema(database_url: str, tmp_path: Path) -> None:
    with Cluster(tmp_path, database_url, access="tokens") as cluster:
        gklbench(cluster.settings, "token", "create", "--name", "Ada", "--scopes", "admin")
        gklbench(cluster.settings, "migrate", "--back-to", "0005")
        names = ("api", "relay", "worker")
        cluster.start_unwaited(*names)
        for name in names:
            assert cluster.processes[name].wait(timeout=60) == 1
            assert "run 'gklbench migrate' first" in cluster.log(name).read_text()


def gklbench(settings: Settings, *arguments: str) -> str:
    done = run(*arguments, environment=settings.environment() | {"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())
