"""Runs that start at once: each is a copy of a process that has loaded their libraries already.

Loading torch takes seconds of processor time, which an evaluation in shards, or many small jobs, pay again and again.
So the first run of a worker starts such a process (`python -m worker.prepared`), and every run is forked from it, with
streams of its own. It is asked over a socket, whose end tells it that the worker is gone.

A run that has ended is reaped only when its supervisor asks how: until then its number, which is its group's too,
cannot become another process's. Nothing touches CUDA before the fork; what has used it cannot be copied.
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
# It loads libraries first, which on a busy host, from a cold disk, takes long.
_ANSWER_SECONDS = 300.0
RUN_NAME = "gklbench-run"
"""What a run is called among the host's processes, in at most 15 characters."""
# Variables that take effect in a copy. Libraries read all others while they are loaded.
_LATER = {"OMP_NUM_THREADS"}


class Prepared:
    """A process that is copied, as the one that asks it sees it."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self._pid, self._connection = pid, connection
        self._connection.settimeout(_ANSWER_SECONDS)
        self._descriptor = os.pidfd_open(pid)
        self._turn = threading.Lock()
        atexit.register(self.close)

    @classmethod
    def started(cls, module: str, environment: Mapping[str, str]) -> Self:
        """`python -m MODULE`, which calls `serve` with its standard input."""
        connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            pid = os.posix_spawn(
                sys.executable,
                # -P: nothing is imported from the directory in which this process happens to run.
                [sys.executable, "-P", "-m", module],
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                ],
                # What a terminal sends to this process's group is not for it.
                setsid=True,
            )
        return cls(pid, connection)

    @property
    def lives(self) -> bool:
        return not _is_readable(self._descriptor)

    def copy(self, order: Mapping[str, Any], descriptors: list[int]) -> int:
        """
        Args:
            order: what `serve` in that process hands on, as JSON.
            descriptors: standard input, output and error of the copy.

        Returns:
            The copy's number, which is its group's too.

        Raises:
            OSError: it has ended, or does not answer.
        """
        with self._turn:
            try:
                socket.send_fds(self._connection, [json.dumps(order).encode()], descriptors)
                answer = self._connection.recv(100)
                if not answer:
                    raise ConnectionResetError("the process that runs are copied from has ended")
            except OSError:
                # Frozen perhaps: what it would say later belongs to no question.
                self._kill()
                raise
        return int(answer)

    def reap(self, pid: int) -> None:
        """Give a copy's number back, once it has ended."""
        with self._turn, suppress(OSError):
            self._connection.send(json.dumps({"reap": pid}).encode())

    def close(self) -> None:
        """To be called once."""
        atexit.unregister(self.close)
        self._kill()
        self._connection.close()
        os.close(self._descriptor)
        os.waitpid(self._pid, 0)

    def _kill(self) -> None:
        signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        _wait_until_readable(self._descriptor)


class Copy:
    """A process that was copied, as the one that asked for it sees it."""

    def __init__(self, pid: int, prepared: Prepared) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """As of `subprocess.Popen`; None until `wait`, and its number is its own until then."""
        self._prepared = prepared
        self._descriptor = os.pidfd_open(pid)

    def has_ended(self) -> bool:
        return self.returncode is not None or _is_readable(self._descriptor)

    def wait(self) -> int:
        """Its exit status, once it has ended; minus the number of the signal that ended it."""
        if self.returncode is None:
            _wait_until_readable(self._descriptor)
            os.close(self._descriptor)
            self.returncode = _status_of(self.pid)
            self._prepared.reap(self.pid)
        return self.returncode


class Run(Copy):
    """The process of a run, as its supervisor has it."""

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
    """Of a process that has ended and is not reaped. Its parent, which could say it too, may be frozen or gone."""
    try:
        # The last of its fields, as wait(2) has it. Its name, the second one, may hold spaces.
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
        environment: all of the run's.

    Raises:
        OSError: no process can be started.
    """
    try:
        return _start(environment)
    except OSError:
        # It was killed between two runs: another one.
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
    """Let runs with such an environment be copies of it."""
    global _current  # noqa: PLW0603 - one for each worker, which costs memory
    _current = prepared, _read_early(environment)


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _LATER}


# --- in that process ---------------------------------------------------------------------------------------------


def main() -> None:
    load()
    serve(become_run)


def load() -> None:
    """What runs need, with nothing left to the garbage collector, which would make copies' pages their own."""
    gc.disable()
    for name in ("gkl.evaluation", "gkl.training", "worker.runner"):
        import_module(name)
    gc.freeze()


def become_run(order: dict[str, Any]) -> None:
    import torch  # noqa: PLC0415

    from worker import runner  # noqa: PLC0415

    threads = order["environment"].get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        torch.set_num_threads(int(threads))
    gc.enable()
    runner.main()


def serve(become: Callable[[dict[str, Any]], None], connection: socket.socket | None = None) -> None:
    """Copy this process for each request, until the requesting process is gone.

    Args:
        become: what a copy does, given the order; its streams and environment are its own then.
        connection: to who asks; standard input by default.
    """
    orders = connection or socket.socket(fileno=os.dup(0))
    for number in (signal.SIGINT, signal.SIGTERM):
        # Its copies end before it does.
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
        # Before that, its process group does not exist and a signal to it would be lost.
        os.read(is_apart, 1)
        os.close(is_apart)
        return pid
    status = 1
    try:
        orders.close()
        # A group of its own: signals to the worker's group, such as Ctrl-C, are the worker's to pass on, and a signal
        # to this group reaches the run's data-loading processes too.
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        Path("/proc/self/comm").write_text(order.get("name", RUN_NAME), encoding="ascii")
        os.close(is_apart)
        os.close(apart)
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        # What these wrote to before could do other things than what they write to now, such as seek.
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout = os.fdopen(1, "w", 1, encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
        os.environ.clear()
        os.environ.update(order["environment"])
        become(order)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does it
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        # Not the interpreter's own way out: this is a copy, and what was made before it is not its to end.
        os._exit(status)


if __name__ == "__main__":
    main()
