"""A run's process and its pipes: starts it, reads its output, and ends it with all processes that it started."""

from __future__ import annotations

import logging
import os
import queue
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Self

from pydantic import ValidationError

from gkl.outcome import MESSAGE, Ending, Event
from worker.prepared import Run, start_run
from worker.run_log import RunLog
from worker.runner import RunOrder

_log = logging.getLogger(__name__)

_IS_FOR_RUNS = re.compile(
    # The process, and the paths of its programs and libraries.
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TMP|TEMP|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV|CC|CXX"
    r"|PYTHON(PATH|HOME|UNBUFFERED|HASHSEED|DONTWRITEBYTECODE|WARNINGS|FAULTHANDLER)|MALLOC_\w+"
    # The GPU and threads.
    r"|(CUDA|CUDNN|CUBLAS|NVIDIA|NCCL|HIP|HSA|MIOPEN|ROCM|ROCR|OMP|KMP|GOMP|MKL|OPENBLAS|NUMEXPR|TRITON)_\w+|(TORCH|PYTORCH)\w*"
    # How RobustBench's loader downloads published weights, and where it keeps them.
    r"|(?i:(HTTP|HTTPS|ALL|NO)_PROXY)|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|XDG_CACHE_HOME|HF_(HOME|HUB_CACHE|HUB_OFFLINE)"
)


class RunProcess:
    """The runner of one attempt, as its supervisor sees it."""

    def __init__(self, run: Run, log: RunLog, *, job_id: int) -> None:
        """
        Args:
            run: the process; this object owns its pipes from now on.
            log: the job's log, to which its standard error is copied.
            job_id: the job's number, for this worker's own log.
        """
        self._run, self._log, self._job_id = run, log, job_id
        self.heard = time.monotonic()
        """When it last printed a line, by the monotonic clock, in seconds."""
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._log_thread = self._thread_of(self._copy_log)

    @classmethod
    def started(cls, order: RunOrder, environment: Mapping[str, str], log: RunLog, *, job_id: int) -> Self:
        """Start a runner and send it its order.

        Raises:
            OSError: no process can be started.
        """
        process = cls(start_run(environment), log, job_id=job_id)
        # The pipe stays open: when it closes, the runner knows that this process has ended.
        try:
            process._run.stdin.write(order.model_dump_json().encode() + b"\n")
            process._run.stdin.flush()
        except BrokenPipeError:
            _log.warning("job %d: its runner ended before it had read its order", job_id)
        process._thread_of(process._read_lines)
        return process

    def next_line(self, *, within_seconds: float) -> bytes | None:
        """The next line that the runner printed; None once it has closed its output.

        Raises:
            queue.Empty: it printed none within this time.
        """
        return self._lines.get(timeout=within_seconds)

    def join_log(self, *, within_seconds: float) -> None:
        """Wait until everything that the runner wrote to its standard error is in the log."""
        self._log_thread.join(timeout=within_seconds)

    def close(self) -> None:
        # If the runner ended before it had read its order, the rest of the order cannot be flushed.
        with suppress(BrokenPipeError):
            self._run.stdin.close()

    def end(self, *, within_seconds: float) -> int:
        """Wait for the runner, then kill it and the processes that it started if they still run.

        Returns:
            The runner's exit status.
        """
        deadline = time.monotonic() + within_seconds
        if self._run.returncode is not None:
            return self._run.returncode
        # It is not reaped here: until it is, the kernel cannot reuse its process id, which is its group's id too.
        while not self._run.has_ended():
            if time.monotonic() >= deadline:
                break
            time.sleep(0.02)
        self.signal(signal.SIGKILL)
        return self._run.wait()

    def signal(self, number: signal.Signals) -> None:
        if self._run.returncode is not None:
            # It was reaped, so its process id may belong to another process by now.
            return
        try:
            os.killpg(self._run.pid, number)
        except ProcessLookupError:
            _log.debug("the runner of job %d had ended already", self._job_id)

    def _thread_of(self, target: Callable[[], None]) -> threading.Thread:
        # With a copy of this context, so that the thread's log lines name the job too.
        thread = threading.Thread(target=partial(copy_context().run, target), daemon=True)
        thread.start()
        return thread

    def _copy_log(self) -> None:
        with self._run.stderr as stderr:
            # Not line by line: a library's progress bar may never end its line.
            while chunk := os.read(stderr.fileno(), 64 * 1024):
                self._log.add(chunk)

    def _read_lines(self) -> None:
        try:
            with self._run.stdout as stdout:
                for line in stdout:
                    # Noted in this thread, so that a supervisor that waits for something else does not delay it.
                    self.heard = time.monotonic()
                    self._lines.put(line)
        finally:
            self._lines.put(None)


def run_environment(threads: int) -> dict[str, str]:
    """The environment variables of a run: those of this process that it needs, without the service's addresses and
    secrets.

    A proxy's address is included, with its password if it has one, since RobustBench's loader downloads missing
    weights.
    """
    given = {name: value for name, value in os.environ.items() if _IS_FOR_RUNS.fullmatch(name)}
    # PASSIVE: threads that wait for each other in a busy loop would take cores from threads that have work to do.
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"} | given


def parse_message(line: bytes) -> Event | Ending | None:
    """The event or ending in a line of the runner's output; None, with a warning, if there is none."""
    try:
        return MESSAGE.validate_json(line)
    except ValidationError:
        _log.warning("the runner printed something that is no message: %.200r", line)
        return None
