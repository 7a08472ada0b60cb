"""Runs as copies of a process that has loaded their libraries."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.cluster import runs_of, until
from tests.specs import tiny_train_spec
from worker import prepared
from worker.prepared import Run, start_run

ENVIRONMENT = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}


@contextmanager
def started(environment: dict[str, str] = ENVIRONMENT) -> Iterator[Run]:
    run = start_run(environment)
    try:
        yield run
    finally:
        if not run.has_ended():
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        for stream in (run.stdin, run.stdout, run.stderr):
            stream.close()


def servers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "worker.prepared" in child.cmdline()]


def order(directory: Path, **changes: object) -> bytes:
    spec = tiny_train_spec(**changes).model_dump(mode="json")
    told = {
        "spec": spec,
        "directory": str(directory),
        "datasets_dir": str(directory),
        "checkpoint_seconds": 600,
    }
    return json.dumps(told).encode() + b"\n"


@pytest.mark.long
def test_a_run_of_two_threads_tells_its_ending(tmp_path: Path) -> None:
    """What was loaded before the copy has started no thread that the copy would wait for."""
    with started({**ENVIRONMENT, "OMP_NUM_THREADS": "2"}) as run:
        run.stdin.write(order(tmp_path))
        run.stdin.flush()
        *_, ending = run.stdout.readlines()
        assert json.loads(ending)["type"] == "trained"
        assert run.wait() == 0


def test_how_a_run_ended_is_known() -> None:
    with started() as refused, started() as killed:
        refused.stdin.close()
        assert b"JSONDecodeError" in refused.stderr.read()
        assert refused.wait() == 1
        assert not killed.has_ended()
        os.killpg(killed.pid, signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        assert killed.wait() == -signal.SIGKILL


def test_nothing_of_a_run_is_left(tmp_path: Path) -> None:
    before = psutil.Process().num_fds()
    for _ in range(3):
        with started():
            pass
    assert psutil.Process().num_fds() == before
    (server,) = servers()
    assert not server.children()


def test_the_environment_is_the_runs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GKLBENCH_ADMIN_TOKEN", "secret")
    with started({**ENVIRONMENT, "OMP_NUM_THREADS": "2"}) as run:
        (process,) = runs_of(os.getpid())
        assert process.pid == run.pid
        assert os.getpgid(run.pid) == run.pid
        assert process.children() == []
        (server,) = servers()
        assert "GKLBENCH_ADMIN_TOKEN" not in server.environ()


def killed(server: psutil.Process) -> None:
    server.kill()
    # It ends as a process that nobody has reaped yet.
    until(lambda: server.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("harm", [killed, psutil.Process.suspend])
def test_another_is_prepared_for_one_that_is_killed_or_hangs(
    harm: Callable[[psutil.Process], object],
) -> None:
    with started() as first:
        (server,) = servers()
        harm(server)
        assert prepared._current is not None
        prepared._current[0]._connection.settimeout(0.5)
        with started() as second:
            assert second.pid != first.pid
            (other,) = servers()
            assert other.pid != server.pid
        # The first run goes on, and how it ends is not known any more once its parent is gone.
        assert not first.has_ended()
    assert first.returncode == -signal.SIGKILL


def test_it_ends_with_its_worker() -> None:
    with started():
        pass
    (server,) = servers()
    assert prepared._current is not None
    prepared._current[0]._connection.close()
    until(lambda: server.status() == psutil.STATUS_ZOMBIE)
    # Another takes its place, as it does when libraries are to be loaded in another environment.
    with started({**ENVIRONMENT, "TZ": "Asia/Tokyo"}):
        (other,) = servers()
        assert (other.pid != server.pid, other.environ()["TZ"]) == (True, "Asia/Tokyo")


def test_runs_of_several_threads_at_once() -> None:
    ended: list[int] = []

    def run() -> None:
        with started() as one:
            one.stdin.close()
            ended.append(one.wait())

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert ended == [1] * 8
