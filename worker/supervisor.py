"""Runs a job as a process of its own, and keeps its row alive while it does.

The runner prints JSON lines on its standard output; its standard error is the job's log. Whatever happens
to it, a crash, the kernel's out-of-memory killer, a hang in a driver, happens to it and not to the worker.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import IO, Self, TypeVar

from pydantic import ValidationError
from sqlalchemy.orm import Session

from app import job_files, jobs
from app.artifacts import ArtifactStore
from app.database import Database
from app.errors import NotFound
from app.settings import Settings
from app.tables import FileKind, JobState
from gkl.errors import FailureCode
from gkl.outcome import (
    MESSAGE,
    BlockSaved,
    CheckpointSaved,
    Ending,
    EvaluationOutcome,
    Event,
    Failed,
    Interrupted,
    Progress,
    ProvisionalVerdict,
    TrainOutcome,
)
from gkl.spec import PUBLISHED_WEIGHTS, EvaluateSpec
from worker.results import save_provisional

_log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 1.0
_T = TypeVar("_T")
_ENDINGS = (TrainOutcome, EvaluationOutcome, Failed, Interrupted)


class Supervisor:
    """One attempt at a job. Leaving the context ends the runner, if it lives, and removes its directory."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ArtifactStore,
        claim: jobs.Claim,
        stopping: threading.Event,
    ) -> None:
        self.settings, self.database, self.store = settings, database, store
        self.claim, self.stopping = claim, stopping
        self.directory = settings.data_dir.resolve() / "runs" / f"{claim.job_id}-{claim.attempt}"
        self.lease = timedelta(seconds=settings.lease_seconds)
        self.process: subprocess.Popen[str] | None = None
        self.progress: Progress | None = None
        self.progress_is_new = False
        self.last_heartbeat = time.monotonic()
        self.asked_to_stop_at: float | None = None

    def __enter__(self) -> Self:
        for stale in self.directory.parent.glob(f"{self.claim.job_id}-*"):
            # Left by an attempt whose worker was killed; its writes are refused by now.
            shutil.rmtree(stale, ignore_errors=True)
        self.directory.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self._kill()
            assert self.process.stdin is not None
            self.process.stdin.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def run(self) -> Ending:
        """Run the job to its end.

        Raises:
            StaleAttempt: the job was given to another worker.
        """
        weights = self._fetch_files()
        log = self.store.job_log(self.claim.job_id)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as log_file:
            now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            print(f"--- attempt {self.claim.attempt}, {now} ---", file=log_file, flush=True)
            self.process = self._start(weights, log_file)
            ending = self._follow(self.process)
        return ending or self._explain(self._wait_for_exit(self.process))

    def _wait_for_exit(self, process: subprocess.Popen[str]) -> int:
        """The runner has closed its output; an interpreter that hangs on its way out is ended."""
        try:
            return process.wait(timeout=self.settings.stop_grace_seconds)
        except subprocess.TimeoutExpired:
            self._kill()
            return process.wait()

    def _fetch_files(self) -> str | None:
        """Bring what the run starts from into its directory; returns the file name of given weights."""
        with self.database.reading() as session:
            left = job_files.to_go_on_from(session, self.claim.job_id)
        for file in left:
            try:
                self.store.fetch(file.sha256, self.directory / file.file)
            except NotFound:
                _log.warning("job %d: %s is gone; what it held is computed again", self.claim.job_id, file.file)
        spec = self.claim.spec
        if not isinstance(spec, EvaluateSpec) or spec.weights == PUBLISHED_WEIGHTS:
            return None
        self.store.fetch(spec.weights, self.directory / "weights")
        return "weights"

    def _start(self, weights: str | None, log_file: IO[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            # -P: nothing is imported from the directory in which the worker happens to run.
            [sys.executable, "-P", "-m", "worker.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            encoding="utf-8",
            errors="replace",
            # The run needs no address or secret of the service.
            env={k: v for k, v in os.environ.items() if not k.startswith("GKLBENCH_")},
            # A group of its own: signals to the worker's group, such as Ctrl-C, are the worker's to pass on,
            # and a signal to this group reaches the run's data-loading processes too.
            start_new_session=True,
        )
        assert process.stdin is not None
        order = {
            "spec": self.claim.spec.model_dump(mode="json"),
            "directory": str(self.directory),
            "datasets_dir": str(self.settings.effective_datasets_dir),
            "models_dir": str(self.settings.effective_models_dir),
            "weights": weights,
        }
        # The pipe stays open: its end tells the runner that this process is gone.
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        return process

    def _follow(self, process: subprocess.Popen[str]) -> Ending | None:
        """Read the runner's lines until it closes its output; returns the ending it reported."""
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read_lines, args=(process, lines), daemon=True).start()
        ending: Ending | None = None
        while True:
            self._enforce_stop()
            try:
                line = lines.get(timeout=0.2)
            except queue.Empty:
                line = ""
            if line is None:
                return ending
            message = _parse(line)
            if isinstance(message, _ENDINGS):
                ending = message
            elif message is not None:
                self._take(message)
            if self._heartbeat_is_due():
                self._heartbeat()

    def _heartbeat_is_due(self) -> bool:
        """Now and then for the lease, and within a second for new progress."""
        pause = min(_PROGRESS_SECONDS, self.settings.heartbeat_seconds)
        if not self.progress_is_new:
            pause = self.settings.heartbeat_seconds
        return time.monotonic() - self.last_heartbeat >= pause

    def _take(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.progress, self.progress_is_new = event, True
        elif isinstance(event, CheckpointSaved):
            self._keep(FileKind.RESUME, event.file, event.epoch)
        elif isinstance(event, BlockSaved):
            self._keep(FileKind.BLOCK, event.file, event.number)
        elif isinstance(event, ProvisionalVerdict):
            patience = self.settings.lease_seconds
            save_provisional(self.database, self.claim, event.outcome, patience_seconds=patience)
        else:
            self._write(lambda session: jobs.record(session, self.claim, event))

    def _keep(self, kind: FileKind, file: str, number: int) -> None:
        """Store what a later attempt can go on from."""
        try:
            stored = self.store.put(self.directory / file)
        except FileNotFoundError:
            # The runner keeps only its newest ones, and has gone on faster than they are copied.
            return

        def keep(session: Session) -> list[str]:
            jobs.hold(session, self.claim)
            job_id = self.claim.job_id
            unused = job_files.add(session, job_id, kind, number=number, file=file, stored=stored)
            if kind is FileKind.RESUME:
                unused += job_files.forget_resume_points_after(session, job_id, number)
                unused += job_files.forget_old_resume_points(session, job_id)
            return [sha256 for sha256 in unused if sha256 != stored.sha256]

        for sha256 in self._write(keep):
            self.store.remove(sha256)

    def _heartbeat(self) -> None:
        state = self._write(
            lambda session: jobs.heartbeat(session, self.claim, lease=self.lease, progress=self.progress)
        )
        self.last_heartbeat, self.progress_is_new = time.monotonic(), False
        if state is JobState.CANCELLING:
            self._ask_to_stop()

    def _write(self, change: Callable[[Session], _T]) -> _T:
        """The run goes on while the database is away, as long as the lease may last."""
        return self.database.write_patiently(change, seconds=self.settings.lease_seconds)

    def _enforce_stop(self) -> None:
        if self.stopping.is_set():
            self._ask_to_stop()
        if self.asked_to_stop_at is None or self.process is None:
            return
        if time.monotonic() - self.asked_to_stop_at > self.settings.stop_grace_seconds:
            self._kill()

    def _ask_to_stop(self) -> None:
        if self.asked_to_stop_at is None and self.process is not None:
            self.asked_to_stop_at = time.monotonic()
            self._signal(signal.SIGTERM)

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            _log.debug("the runner of job %d had ended already", self.claim.job_id)

    def _explain(self, returncode: int) -> Ending:
        """What to say of a runner that ended without reporting an ending."""
        if self.asked_to_stop_at is not None:
            return Interrupted()
        if returncode == -signal.SIGKILL:
            return Failed(
                code=FailureCode.KILLED,
                message="the run was killed from outside (SIGKILL), as the kernel does when a host is out of memory; "
                "look at the host's memory, lower batch_size if it was short, and submit the job again",
            )
        cause = f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit status {returncode}"
        return Failed(
            code=FailureCode.INTERNAL,
            message=f"the run ended with {cause} and gave no reason; the job's log may hold it",
        )


def _read_lines(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    try:
        with process.stdout as stdout:
            for line in stdout:
                lines.put(line)
    finally:
        lines.put(None)


def _parse(line: str) -> Event | Ending | None:
    if not line:
        return None
    try:
        return MESSAGE.validate_json(line)
    except ValidationError:
        _log.warning("the runner printed something that is no message: %.200s", line)
        return None
