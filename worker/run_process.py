"""A run's process and its pipes: started with its order, heard line by line, ended with all that it started."""

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
    # The process and where its programs and libraries are.
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TMP|TEMP|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV|CC|CXX"
    r"|PYTHON(PATH|HOME|UNBUFFERED|HASHSEED|DONTWRITEBYTECODE|WARNINGS|FAULTHANDLER)|MALLOC_\w+"
    # The GPU and the threads.
    r"|(CUDA|CUDNN|CUBLAS|NVIDIA|NCCL|HIP|HSA|MIOPEN|ROCM|ROCR|OMP|KMP|GOMP|MKL|OPENBLAS|NUMEXPR|TRITON)_\w+|(TORCH|PYTORCH)\w*"
    # How RobustBench's loader reaches published weights, and where it keeps them.
    r"|(?i:(HTTP|HTTPS|ALL|NO)_PROXY)|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|XDG_CACHE_HOME|HF_(HOME|HUB_CACHE|HUB_OFFLINE)"
)


class RunProcess:
    """The runner of one attempt, as its supervisor has it."""

    def __init__(self, run: Run, log: RunLog, *, job_id: int) -> None:
        """
        Args:
            run: the process; its pipes are this object's from now on.
            log: where what it writes to its standard error goes.
            job_id: for this worker's own log.
        """
        self._run, self._log, self._job_id = run, log, job_id
        self.heard = time.monotonic()
        """When it printed a line last, by the monotonic clock."""
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._log_thread = self._thread_of(self._copy_log)

    @classmethod
    def started(cls, order: RunOrder, environment: Mapping[str, str], log: RunLog, *, job_id: int) -> Self:
        """
        Raises:
            OSError: no process can be started.
        """
        process = cls(start_run(environment), log, job_id=job_id)
        # The pipe stays open: when it closes, the runner knows that this process is gone.
        try:
            process._run.stdin.write(order.model_dump_json().encode() + b"\n")
            process._run.stdin.flush()
        except BrokenPipeError:
            _log.warning("job %d: its runner ended before it had read its order", job_id)
        process._thread_of(process._read_lines)
        return process

    def next_line(self, *, within_seconds: float) -> bytes | None:
        """The next line that it printed; None once it has closed its output.

        Raises:
            queue.Empty: there was none in that time.
        """
        return self._lines.get(timeout=within_seconds)

    def join_log(self, *, within_seconds: float) -> None:
        """Wait until all that it wrote to its standard error is in the log."""
        self._log_thread.join(timeout=within_seconds)

    def close(self) -> None:
        # What it did not read of its order cannot be flushed any more.
        with suppress(BrokenPipeError):
            self._run.stdin.close()

    def end(self, *, within_seconds: float) -> int:
        """Wait for the runner, then end what is left of it and of the processes it started; its exit status."""
        deadline = time.monotonic() + within_seconds
        if self._run.returncode is not None:
            return self._run.returncode
        # Without reaping it: until then its number, which is the group's too, cannot become another process's.
        while not self._run.has_ended():
            if time.monotonic() >= deadline:
                break
            time.sleep(0.02)
        self.signal(signal.SIGKILL)
        return self._run.wait()

    def signal(self, number: signal.Signals) -> None:
        if self._run.returncode is not None:
            # Reaped: its number may be somebody else's by now.
            return
        try:
            os.killpg(self._run.pid, number)
        except ProcessLookupError:
            _log.debug("the runner of job %d had ended already", self._job_id)

    def _thread_of(self, target: Callable[[], None]) -> threading.Thread:
        # In this context: what the thread logs belongs to the job too.
        thread = threading.Thread(target=partial(copy_context().run, target), daemon=True)
        thread.start()
        return thread

    def _copy_log(self) -> None:
        with self._run.stderr as stderr:
            # Lines, or what there is of one: a progress bar of a library may never end its line.
            while chunk := os.read(stderr.fileno(), 64 * 1024):
                self._log.add(chunk)

    def _read_lines(self) -> None:
        try:
            with self._run.stdout as stdout:
                for line in stdout:
                    # Noted here: the run is not to blame for what its supervisor waits for.
                    self.heard = time.monotonic()
                    self._lines.put(line)
        finally:
            self._lines.put(None)


def run_environment(threads: int) -> dict[str, str]:
    """What a run needs of this process's environment: no address and no secret of the service. A proxy's address is
    among it, with the password if it has one: RobustBench's loader downloads what is missing."""
    given = {name: value for name, value in os.environ.items() if _IS_FOR_RUNS.fullmatch(name)}
    # Threads that wait for each other in a busy loop take the cores from threads that could finish, and so delay all.
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"} | given


def parse_message(line: bytes) -> Event | Ending | None:
    try:
        return MESSAGE.validate_json(line)
    except ValidationError:
        _log.warning("the runner printed something that is no message: %.200r", line)
        return None
