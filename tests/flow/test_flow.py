"""From POST to the page's HTML: every process real, the whole way on both databases."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
from sqlalchemy import create_engine

from app.cli.embedded import EmbeddedService, StartError
from app.core.settings import Settings
from gkl.answers import JobState, JobView
from gkl.client import Client
from gkl.errors import FailureCode
from gkl.recipes import recipe
from tests import commands
from tests.cluster import free_port, runs_of, until
from tests.commands import Command, start
from tests.databases import either_database, postgresql_only
from tests.specs import endless_train_spec, tiny_train_spec


@pytest.fixture
def client(running: EmbeddedService) -> Iterator[Client]:
    with Client(running.url) as client:
        yield client


@pytest.fixture
def running(settings: Settings) -> Iterator[EmbeddedService]:
    """The embedded service's processes on the test's database, in a folder whose name has to be quoted everywhere."""
    changes = {"port": free_port(), "heartbeat_seconds": 1.0, "relay_seconds": 1.0}
    quick = settings.model_copy(update=changes | {"data_dir": settings.data_dir / "a b?c#d%41'e\""})
    commands.prepare()
    others = set(psutil.Process().children(recursive=True))
    with EmbeddedService(quick) as service:
        # A browser that looks at the service starts processes of its own when it likes.
        started = {p for p in set(psutil.Process().children(recursive=True)) - others if not is_browser(p)}
        yield service
    until(lambda: not [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])


def is_browser(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "chrom" in process.name()
    return False


def page(service: EmbeddedService, path: str) -> str:
    response = httpx2.get(service.url + path, headers={"Accept": "text/html"})
    assert response.headers["content-type"].startswith("text/html")
    return response.text


def test_a_student_waits_for_its_teacher_and_goes_to_the_board(running: EmbeddedService, client: Client) -> None:
    """From two POSTs to the board of clean accuracy: what teaches, and what learned from it."""
    taught = recipe("digits-teacher").model_copy(update={"epochs": 10, "architecture": "tiny_cnn"})
    teacher = client.submit(taught)
    student = client.submit(recipe("digits-distill").model_dump(mode="json") | {"teacher": {"job": teacher.id}})
    assert (student.state, student.due_at, student.awaits_id) == (JobState.QUEUED, None, teacher.id)
    ended = client.wait(student.id, progress=False)
    assert [job.state for job in ended] == [JobState.SUCCEEDED] * 2, [job.failure for job in ended]
    weights = client.job(teacher.id).weights_sha256
    assert ended[0].spec["teacher"] == {
        "kind": "weights",
        "architecture": "tiny_cnn",
        "weights": weights,
        "weights_key": None,
    }
    told = [e.data["reason"] for e in client.events(student.id) if e.type == "state" and "reason" in e.data]
    assert f"waits for its teacher, job {teacher.id}" in told[0]
    assert told[1] == f"its teacher, job {teacher.id}, has succeeded"
    # With what the teacher is told before the first step: its accuracy on the test images.
    assert "the teacher tiny_cnn classifies" in client.log(student.id).text


def test_a_job_goes_all_the_way(running: EmbeddedService, client: Client) -> None:
    assert "Nothing has been measured yet" in page(running, "/")
    job = client.submit(tiny_train_spec(epochs=12))
    events = list(client.events(job.id))
    assert [e.data["state"] for e in events if e.type == "state"] == ["queued", "running", "succeeded"]
    assert any(e.type == "progress" for e in events)
    trained = client.job(job.id)
    (evaluation_id,) = trained.child_ids
    list(client.events(evaluation_id))
    evaluated = client.job(evaluation_id)
    assert evaluated.state is JobState.SUCCEEDED, evaluated.failure
    assert evaluated.model_id == trained.model_id is not None

    model = client.model(evaluated.model_id)  # type: ignore[arg-type]
    measured = model.evaluations[0]
    board = page(running, "/leaderboards/digits/Linf-0.9")
    low, high = measured.robust.interval
    for text in ("Digits, Linf 0.9", '">Tiny</a>', "TinyCNN", "GKL"):
        assert text in board
    assert f"{100 * measured.robust.accuracy:.2f} %" in board
    assert f"{100 * low:.1f} to {100 * high:.1f}" in board
    assert "Digits, Linf 0.9" in page(running, "/")
    entry = page(running, f"/models/{model.id}")
    for attack in measured.attacks:
        assert attack.attack in entry
    assert model.weights_sha256 in entry
    assert "polyline" in page(running, f"/jobs/{job.id}")
    assert f"/jobs/{evaluation_id}" in page(running, "/jobs?kind=evaluate")


@either_database
def test_a_running_job_is_seen_and_cancelled_on_its_page(running: EmbeddedService, client: Client) -> None:
    job = client.submit(endless_train_spec())
    until(lambda: client.job(job.id).progress)
    shown = page(running, f"/jobs/{job.id}")
    assert f'data-events="/api/v1/jobs/{job.id}/events"' in shown
    assert "<progress" in shown
    other_site = httpx2.post(f"{running.url}/jobs/{job.id}/cancel", headers={"Sec-Fetch-Site": "cross-site"})
    assert other_site.status_code == 403
    assert client.job(job.id).state is JobState.RUNNING
    assert httpx2.post(f"{running.url}/jobs/{job.id}/cancel").status_code == 303
    until(lambda: client.job(job.id).state is JobState.CANCELLED)
    assert "data-events" not in page(running, f"/jobs/{job.id}")


@either_database
def test_a_killed_runner_is_a_failed_job_and_the_next_one_runs(running: EmbeddedService, client: Client) -> None:
    job = client.submit(endless_train_spec())
    until(lambda: client.job(job.id).progress)
    for process in runs_of(os.getpid()):
        process.kill()
    until(lambda: client.job(job.id).state is JobState.FAILED)
    failed = client.job(job.id)
    assert failed.failure is not None
    assert failed.failure.code is FailureCode.KILLED
    assert "killed from outside" in page(running, f"/jobs/{job.id}")
    client.retry(job.id)
    until(lambda: client.job(job.id).progress)
    assert client.cancel(job.id).attempt == 2
    following = client.submit(tiny_train_spec(evaluation=None, architecture="small_cnn"))
    until(lambda: client.job(following.id).state is JobState.SUCCEEDED)


# What the relay finds there, and how, is tried on both by the tests of jobs.
@postgresql_only
def test_a_wiped_broker_loses_no_job(running: EmbeddedService, client: Client) -> None:
    """The worker dies with the message, the relay announces the job again."""
    blocker = client.submit(endless_train_spec())
    until(lambda: client.job(blocker.id).progress)
    waiting = client.submit(tiny_train_spec(evaluation=None, architecture="small_cnn"))

    from redis import Redis

    with Redis.from_url(running.settings.broker_url) as broker:
        broker.flushall()
    database = create_engine(running.settings.effective_database_url.replace("postgresql:", "postgresql+psycopg:"))
    with database.begin() as connection:
        # As if the message had been sent a while ago.
        connection.exec_driver_sql("UPDATE outbox SET published_at = '2020-01-01 00:00:00'")
    database.dispose()
    httpx2.post(f"{running.url}/api/v1/jobs/{blocker.id}/cancel")
    until(lambda: client.job(waiting.id).state is JobState.SUCCEEDED)


def command(tmp_path: Path, *arguments: str, port: int | None = None) -> Command:
    return start(*arguments, "--data-dir", str(tmp_path), "--port", str(port or free_port()))


def told(process: Command) -> str:
    """All that it says until its end."""
    assert process.stdout is not None
    with process:
        return process.stdout.read()


def test_ctrl_c_in_training_leaves_no_process_and_a_job_to_go_on_with(tmp_path: Path) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack, command(tmp_path, "up", port=port) as up:
        assert up.stdout is not None
        assert f"http://127.0.0.1:{port}" in up.stdout.readline()
        client = stack.enter_context(Client(f"http://127.0.0.1:{port}"))
        job = client.submit(endless_train_spec())
        until(lambda: client.job(job.id).progress)
        processes = psutil.Process(up.pid).children(recursive=True)
        assert len(processes) >= 6
        refused = told(command(tmp_path, "up"))
        assert "a service is already running on the data directory" in refused
        os.kill(up.pid, signal.SIGINT)
        assert "Stopped." in up.stdout.read()
    assert up.returncode == 0
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not [p for p in tmp_path.rglob("*") if ".part" in p.name or ".incoming-" in p.name]
    assert list((tmp_path / "runs").iterdir()) == []
    # A second start takes the job up where it stopped.
    with command(tmp_path, "up", port=port) as up, Client(f"http://127.0.0.1:{port}") as client:
        until(lambda: _second_attempt(client, job))
        os.kill(up.pid, signal.SIGTERM)
        assert up.stdout is not None
        assert "Stopped." in up.stdout.read()
    assert up.returncode == 0


def _second_attempt(client: Client, job: JobView) -> bool:
    from gkl.client import ClientError

    try:
        now = client.job(job.id)
    except ClientError:
        return False
    return now.attempt == 2 and now.state is JobState.RUNNING


def test_a_killed_parent_takes_everything_with_it(tmp_path: Path) -> None:
    with command(tmp_path, "up") as up:
        assert up.stdout is not None
        up.stdout.readline()
        processes = psutil.Process(up.pid).children(recursive=True)
        up.kill()
    until(lambda: not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])


def test_a_process_that_keeps_dying_ends_the_demo_with_a_reason(tmp_path: Path) -> None:
    with command(tmp_path, "demo", "--exit") as demo:
        assert demo.stdout is not None
        demo.stdout.readline()
        while demo.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(demo.pid).children(recursive=True):
                    if process.name() == "gklbench-worker":
                        process.kill()
            time.sleep(0.5)
        output = demo.stdout.read()
    assert demo.returncode == 1
    assert "gklbench: the worker process ended with status -9" in output


@either_database
def test_processes_that_are_killed_are_started_again(running: EmbeddedService, client: Client) -> None:
    for process in list(running.children.values()):
        process.kill()
        process.wait()

    def answers() -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(f"{running.url}/readyz", timeout=5).status_code == 200
        return False

    until(answers)
    job = client.submit(tiny_train_spec(evaluation=None, architecture="tiny_cnn", epochs=1))
    until(lambda: client.job(job.id).state is JobState.SUCCEEDED)
    servers = [p for p in psutil.Process().children(recursive=True) if "valkey-server" in p.name()]
    mine = [p for p in servers if str(running.broker_port) in " ".join(p.cmdline())]
    assert len(mine) <= 1, "the first broker's own server was ended before another took its place"


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        output = told(process := command(tmp_path, "up", port=port))
    assert process.returncode == 1
    assert output.strip() == (
        f"gklbench: port {port} on 127.0.0.1 cannot be used (Address already in use); choose another with --port"
    )


def test_a_data_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="cannot be written"), EmbeddedService(Settings(data_dir=tmp_path / "file")):
        pass
