"""The commands as processes, each a copy of one that has loaded what they need: `python -m tests.commands`.

A service is four or five processes, and a test of one starts it anew: what Python and torch take to load, again and
again, would be most of the time of such tests. What a copy does from there on is what the command does.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

from app.cli import embedded
from worker import prepared
from worker.prepared import Copy, Prepared

ROOT = Path(__file__).parents[1]
_IMPORTED_WHEN_CALLED = [
    "app.cli.main",
    "app.main",
    "app.db.migrations",
    "app.maintenance.relay",
    "celery.apps.worker",
    "celery.concurrency.thread",
    "kombu.transport.redis",
    "sklearn.datasets",
    "uvicorn.main",
    "worker.celery_app",
]
_servers: list[Prepared] = []
"""This process's one, once it was needed."""


class Command(Copy):
    """Of `subprocess.Popen` what tests and the embedded service use."""

    def __init__(self, pid: int, stdin: IO[bytes] | None = None, stdout: IO[str] | None = None) -> None:
        super().__init__(pid, _server())
        self.stdin, self.stdout = stdin, stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stdout is not None:
            self.stdout.close()
        self.wait()

    def poll(self) -> int | None:
        return self.wait() if self.has_ended() else None

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while deadline is not None and not self.has_ended():
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("gklbench", timeout or 0)
            time.sleep(0.02)
        return super().wait()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_child(arguments: list[str], *, environment: dict[str, str], log: Path) -> Command:
    """`app.core.lifeline.start_child`, sooner."""
    log.parent.mkdir(parents=True, exist_ok=True)
    stdin, ours = os.pipe()
    with log.open("ab") as output:
        pid = _copy(arguments, {**os.environ, **environment}, [stdin, output.fileno(), output.fileno()])
    os.close(stdin)
    return Command(pid, os.fdopen(ours, "wb"))


def start(*arguments: str) -> Command:
    """With nothing to read, and what it writes, on either stream, as lines of text."""
    ours, output = os.pipe()
    with Path(os.devnull).open("rb") as nothing:
        pid = _copy(arguments, os.environ, [nothing.fileno(), output, output])
    os.close(output)
    return Command(pid, stdout=os.fdopen(ours, "r", encoding="utf-8"))


def start_logged(
    arguments: Sequence[str], *, environment: Mapping[str, str], log: IO[bytes], directory: Path
) -> Command:
    """With this environment alone."""
    with Path(os.devnull).open("rb") as nothing:
        return Command(_copy(arguments, environment, [nothing.fileno(), log.fileno(), log.fileno()], directory))


def run(
    *arguments: str | Path, environment: Mapping[str, str] | None = None, stdin: str = "", timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; with this process's environment, if no other is given.

    Raises:
        subprocess.TimeoutExpired: it takes longer, and was ended.
    """
    with TemporaryFile("w+") as given, TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        given.write(stdin)
        given.seek(0)
        streams = [file.fileno() for file in (given, output, errors)]
        command = Command(_copy([str(a) for a in arguments], environment or os.environ, streams))
        try:
            status = command.wait(timeout)
        finally:
            command.kill()
            command.wait()
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, status, output.read(), errors.read())


def prepare() -> None:
    """Now instead of at the first command."""
    _server()


def _server() -> Prepared:
    if not _servers:
        _servers.append(Prepared.started("tests.commands", os.environ | {"PYTHONPATH": str(ROOT)}))
    return _servers[0]


def _copy(
    arguments: Sequence[str], environment: Mapping[str, str], streams: list[int], directory: Path | None = None
) -> int:
    order = {
        # What it is called among the host's processes.
        "name": f"gklbench-{arguments[0]}"[:15],
        "environment": dict(environment),
        "arguments": list(arguments),
        "directory": str(directory or Path.cwd()),
    }
    return _server().copy(order, streams)


# --- in that process ---------------------------------------------------------------------------------------------


def main() -> None:
    gc.disable()
    for name in _IMPORTED_WHEN_CALLED:
        import_module(name)
    prepared.load()
    prepared.serve(_become_command)


def _become_command(order: dict[str, Any]) -> None:
    gc.enable()
    os.chdir(order["directory"])
    # What depends on the environment and was taken from that of the prepared process.
    time.tzset()
    tempfile.tempdir = None
    name, *_ = order["arguments"]
    if name == "worker":
        _prepare_runs()
    if name in ("up", "demo"):
        _prepare_commands()
    from app.cli import main as cli

    sys.argv = ["gklbench", *order["arguments"]]
    try:
        cli.main()
    finally:
        # As the interpreter does at its end.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


def _prepare_runs() -> None:
    """The worker's own prepared process, without loading everything once more."""
    from worker.run_process import run_environment

    environment = run_environment(1)
    prepared.take(_another(prepared.become_run, environment), environment)


def _prepare_commands() -> None:
    """Those that this one starts are copies too."""
    _servers[:] = [_another(_become_command, os.environ)]
    embedded.start_child = start_child  # type: ignore[assignment]


def _another(become: Callable[[dict[str, Any]], None], environment: Mapping[str, str]) -> Prepared:
    """A copy of this one that is copied in turn."""
    connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept = dict(environment)
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.setsid()
        os.environ.clear()
        os.environ.update(kept)
        with Path(os.devnull).open("r+b") as nothing:
            # The end of the other's lifeline, and of what it writes, is for the other.
            os.dup2(nothing.fileno(), 0)
            os.dup2(nothing.fileno(), 1)
        prepared.serve(become, theirs)
        os._exit(0)
    theirs.close()
    return Prepared(pid, connection)


if __name__ == "__main__":
    main()
