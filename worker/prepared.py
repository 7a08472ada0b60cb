"""Starts runs without delay, by forking a process that has already loaded torch and the engine.

Loading torch takes seconds of CPU time, which an evaluation in shards, or many small jobs, would spend again and again.
So the first run of a worker starts a prepared process (`python -m worker.prepared`), and each run is forked from it,
with its own standard streams. The worker sends requests over a socket; when the socket closes, the prepared process
knows that the worker has ended, and exits.

A run that has ended is reaped only when its supervisor asks for its exit status. Until then the kernel cannot reuse its
process id, which is its process group's id too. Nothing uses CUDA before the fork, because a process that has used CUDA
cannot be forked.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Self

_ORDER_BYTES = 256 * 1024
# The prepared process loads libraries before it answers, which takes long on a busy host with a cold disk.
_ANSWER_SECONDS = 300.0
RUN_NAME = "gklbench-run"
"""The process name of a run, at most 15 characters."""
# Environment variables that still take effect after the fork. Libraries read all others while they are loaded.
_LATER = {"OMP_NUM_THREADS"}


class Prepared:
    """The prepared process, as the worker that sends it requests sees it."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self._pid, self._connection = pid, connection
        self._connection.settimeout(_ANSWER_SECONDS)
        self._descriptor = os.pidfd_open(pid)
        self._turn = threading.Lock()
        atexit.register(self.close)

    @classmethod
    def started(cls, module: str, environment: Mapping[str, str]) -> Self:
        """Start `python -m MODULE`, which must call `serve`; its standard input is the socket for requests."""
        connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            pid = os.posix_spawn(
                sys.executable,
                # -P: import nothing from the current directory.
                [sys.executable, "-P", "-m", module],
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                ],
                # A session of its own, so that it gets no signals that a terminal sends to this process's group.
                setsid=True,
            )
        return cls(pid, connection)

    @property
    def lives(self) -> bool:
        return not _is_readable(self._descriptor)

    def copy(self, order: Mapping[str, Any], descriptors: list[int]) -> int:
        """Fork the prepared process.

        Args:
            order: a JSON object, which `serve` in that process passes to the fork.
            descriptors: standard input, output and error of the fork.

        Returns:
            The fork's process id, which is its process group's id too.

        Raises:
            OSError: the prepared process has ended, or does not answer.
        """
        with self._turn:
            try:
                socket.send_fds(self._connection, [json.dumps(order).encode()], descriptors)
                answer = self._connection.recv(100)
                if not answer:
                    raise ConnectionResetError("the process that runs are copied from has ended")
            except OSError:
                # It may be frozen: a late answer would be taken for the answer to the next request.
                self._kill()
                raise
        return int(answer)

    def reap(self, pid: int) -> None:
        """Let the prepared process reap a fork that has ended, so that the kernel may reuse its process id."""
        with self._turn, suppress(OSError):
            self._connection.send(json.dumps({"reap": pid}).encode())

    def close(self) -> None:
        """End the prepared process. Call it once only."""
        atexit.unregister(self.close)
        self._kill()
        self._connection.close()
        os.close(self._descriptor)
        os.waitpid(self._pid, 0)

    def _kill(self) -> None:
        signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        _wait_until_readable(self._descriptor)


class Copy:
    """A process forked from the prepared one, as the worker that requested it sees it."""

    def __init__(self, pid: int, prepared: Prepared) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """As in `subprocess.Popen`. It is None until `wait` has returned; until then `pid` cannot be reused."""
        self._prepared = prepared
        self._descriptor = os.pidfd_open(pid)

    def has_ended(self) -> bool:
        return self.returncode is not None or _is_readable(self._descriptor)

    def wait(self) -> int:
        """Wait for the process to end. Returns its exit status, or minus the number of the signal that ended it."""
        if self.returncode is None:
            _wait_until_readable(self._descriptor)
            os.close(self._descriptor)
            self.returncode = _status_of(self.pid)
            self._prepared.reap(self.pid)
        return self.returncode


class Run(Copy):
    """The process of a run, with the supervisor's ends of its three standard streams."""

    def __init__(self, pid: int, prepared: Prepared, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> None:
        super().__init__(pid, prepared)
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr


def _is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _wait_until_readable(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()


def _status_of(pid: int) -> int:
    """The exit status of a process that has ended and is not reaped yet.

    It is read from /proc, because the parent, which could also report it, may be frozen or gone.
    """
    try:
        # The last field is the status as in wait(2). The second field, the process name, may contain spaces.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return os.waitstatus_to_exitcode(int(fields[-1]))
    except (OSError, ValueError):
        # If the kernel kills the prepared process when memory is short, the exit statuses of its runs are lost.
        return -signal.SIGKILL


# --- in a worker -------------------------------------------------------------------------------------------------

_starting = threading.Lock()
_current: tuple[Prepared, dict[str, str]] | None = None


def start_run(environment: Mapping[str, str]) -> Run:
    """Start `worker.runner` in a copy of this worker's prepared process, and start that process first if needed.

    Args:
        environment: all environment variables of the run.

    Raises:
        OSError: no process can be started.
    """
    try:
        return _start(environment)
    except OSError:
        # The prepared process was killed between two runs; start another one.
        return _start(environment)


def _start(environment: Mapping[str, str]) -> Run:
    prepared = _prepared(environment)
    (stdin, ours_in), (ours_out, stdout), (ours_err, stderr) = os.pipe(), os.pipe(), os.pipe()
    try:
        pid = prepared.copy({"environment": dict(environment)}, [stdin, stdout, stderr])
    except OSError:
        for descriptor in (ours_in, ours_out, ours_err):
            os.close(descriptor)
        raise
    finally:
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
    return Run(pid, prepared, os.fdopen(ours_in, "wb"), os.fdopen(ours_out, "rb"), os.fdopen(ours_err, "rb"))


def _prepared(environment: Mapping[str, str]) -> Prepared:
    with _starting:
        if _current is not None:
            prepared, loaded = _current
            if prepared.lives and loaded == _read_early(environment):
                return prepared
            prepared.close()
        prepared = Prepared.started("worker.prepared", environment)
        take(prepared, environment)
        return prepared


def take(prepared: Prepared, environment: Mapping[str, str]) -> None:
    """Fork runs with this environment from this prepared process from now on."""
    global _current  # noqa: PLW0603 - only one per worker, because it needs memory
    _current = prepared, _read_early(environment)


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _LATER}


# --- in the prepared process -------------------------------------------------------------------------------------


def main() -> None:
    load()
    serve(become_run)


def load() -> None:
    """Import what runs need, and exclude it from garbage collection.

    A collection in a fork would write to the shared memory pages, so that the kernel would copy them.
    """
    gc.disable()
    for name in ("gkl.evaluation", "gkl.training", "worker.runner"):
        import_module(name)
    gc.freeze()


def become_run(order: dict[str, Any]) -> None:
    """Run `worker.runner` in this fork, with the number of threads of its environment."""
    import torch  # noqa: PLC0415

    from worker import runner  # noqa: PLC0415

    threads = order["environment"].get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        torch.set_num_threads(int(threads))
    gc.enable()
    runner.main()


def serve(become: Callable[[dict[str, Any]], None], connection: socket.socket | None = None) -> None:
    """Fork this process for each request, until the requesting process has ended.

    Args:
        become: called in each fork with its order, once the fork has its own streams and environment.
        connection: the socket to the requesting process; standard input by default.
    """
    orders = connection or socket.socket(fileno=os.dup(0))
    for number in (signal.SIGINT, signal.SIGTERM):
        # Ignored: this process ends after its forks, when the socket closes.
        signal.signal(number, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(orders, _ORDER_BYTES, 3)
        if not message:
            return
        order = json.loads(message)
        if "reap" in order:
            os.waitpid(order["reap"], 0)
            continue
        pid = _copy(orders, order, descriptors, become)
        with suppress(BrokenPipeError):
            orders.send(str(pid).encode())


def _copy(
    orders: socket.socket, order: dict[str, Any], descriptors: list[int], become: Callable[[dict[str, Any]], None]
) -> int:
    is_apart, apart = os.pipe()
    pid = os.fork()
    if pid:
        for descriptor in (*descriptors, apart):
            os.close(descriptor)
        # Wait until the fork has its own process group: a signal to the group would be lost before.
        os.read(is_apart, 1)
        os.close(is_apart)
        return pid
    status = 1
    try:
        orders.close()
        # A process group of its own: the worker decides which signals, such as Ctrl-C, it passes on, and a signal to
        # this group also reaches the run's data-loading processes.
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        Path("/proc/self/comm").write_text(order.get("name", RUN_NAME), encoding="ascii")
        os.close(is_apart)
        os.close(apart)
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        # New file objects: the old ones remember properties of their earlier files, such as whether they can seek.
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout = os.fdopen(1, "w", 1, encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
        os.environ.clear()
        os.environ.update(order["environment"])
        become(order)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        # Not sys.exit: exit handlers registered before the fork belong to the prepared process.
        os._exit(status)


if __name__ == "__main__":
    main()
