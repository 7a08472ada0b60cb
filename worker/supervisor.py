"""Runs a job in a separate process, and supervises it.

The runner prints JSON lines on its standard output; its standard error is the job's log. Because it is a process of its
own, a crash, the kernel's out-of-memory killer, or a hanging driver ends the run but not the worker.
"""

from __future__ import annotations

import logging
import queue
import shutil
import signal
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from joblib import cpu_count
from sqlalchemy.exc import SQLAlchemyError

from app import jobs
from app.core.errors import StaleAttempt
from app.core.formatting import duration
from app.core.settings import Settings
from app.db.database import DATABASE_AWAY, Database
from app.jobs import workers
from app.store import ArtifactStore
from gkl.errors import FailureCode
from gkl.outcome import (
    Ending,
    EvaluationOutcome,
    ExternalOutcome,
    Failed,
    Interrupted,
    ReportOutcome,
    ShardOutcome,
    TrainOutcome,
    TransferOutcome,
)
from worker.given_files import GivenFiles
from worker.lease import Lease
from worker.patience import Patience
from worker.results import read_robust_points, save_result, store_result
from worker.run_directories import run_directory
from worker.run_events import RunEvents
from worker.run_log import RunLog
from worker.run_process import RunProcess, parse_message, run_environment
from worker.runner import RunOrder

_log = logging.getLogger(__name__)

_SUCCESSES = (TrainOutcome, EvaluationOutcome, ShardOutcome, ExternalOutcome, ReportOutcome, TransferOutcome)
_ENDINGS = (*_SUCCESSES, Failed, Interrupted)


class Supervisor:
    """One attempt at a job. Leaving the context ends the runner, if it still runs, and removes its directory."""

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
        self.directory = run_directory(settings, claim)
        self.lease = Lease(
            database, claim, lease_seconds=settings.lease_seconds, heartbeat_seconds=settings.heartbeat_seconds
        )
        self.process: RunProcess | None = None
        self.log = RunLog(database, claim, max_bytes=settings.max_log_bytes)
        self.patience = Patience(
            database, self.lease, self.log, self._gives_up, store_seconds=settings.no_progress_seconds
        )
        self.events = RunEvents(settings, store, claim, self.directory, self.patience)
        self.started = time.monotonic()
        self.asked_to_stop_at: float | None = None
        self.limit: Failed | None = None
        """The failure to report, if the run was asked to stop because it exceeded a limit."""

    def __enter__(self) -> Self:
        # It exists only if the database was restored from a backup that is older than this attempt.
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self.lease.__enter__()
        self.log.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.log.stop()
        try:
            if self.process is not None:
                self.process.end(within_seconds=0)
                self.process.close()
                # If the run was ended early, save the last lines of its log.
                with suppress(StaleAttempt, SQLAlchemyError):
                    self.log.write()
            shutil.rmtree(self.directory, ignore_errors=True)
        finally:
            self.lease.__exit__(kind, error, trace)

    def run(self) -> Ending:
        """Run the job to its end and save its result.

        Raises:
            StaleAttempt: the job was given to another worker; nothing of this run is saved.
            NoSpaceLeft: the disk of the artifact store is full.
            StoreAway: the artifact store was down for too long, or until the job or this worker had to stop.
        """
        given = GivenFiles(self.store, self.claim, self.directory, self.log, self.patience)
        weights, converted = self.patience.with_store(given.fetch)
        others = self.patience.with_store(given.others)
        self.log.add(f"--- attempt {self.claim.attempt}, {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC ---\n".encode())
        order = self._order(weights, converted, others)
        environment = run_environment(self._threads())
        self.process = RunProcess.started(order, environment, self.log, job_id=self.claim.job_id)
        ending = self._follow(self.process)
        returncode = self.process.end(within_seconds=self.settings.stop_grace_seconds)
        # Before the job ends, so that a reader who sees that it has ended finds the whole log.
        self.process.join_log(within_seconds=5)
        self._write_log()
        ending = self._judge(ending, returncode)
        points = read_robust_points(ending, self.directory)
        stored = self.patience.with_store(lambda: store_result(self.store, ending, self.directory))
        save_result(self.database, self.claim, ending, stored, points=points, give_up=self._gives_up)
        return ending

    # --- the runner's process ------------------------------------------------------------------------------------

    def _threads(self) -> int:
        """How many threads a run may use: the cores that this process may use, divided by the workers on this host.

        joblib's `cpu_count` respects the process's control group and its CPU affinity.
        """
        sharing = self.patience.write(
            lambda session: workers.count_on(
                session, socket.gethostname(), lease=timedelta(seconds=self.settings.lease_seconds)
            )
        )
        cores: int = cpu_count()
        return max(1, cores // max(1, sharing))

    def _order(self, weights: str | None, converted: str | None, others: list[Path]) -> RunOrder:
        return RunOrder(
            spec=self.claim.spec,
            shard_index=self.claim.shard_index,
            directory=self.directory,
            datasets_dir=self.settings.effective_datasets_dir,
            models_dir=self.settings.effective_models_dir,
            weights=weights,
            converted=converted,
            others=tuple(others),
            checkpoint_seconds=self.settings.checkpoint_seconds,
        )

    def _write_log(self) -> None:
        try:
            self.database.patiently(self.log.write, give_up=self._gives_up)
        except DATABASE_AWAY:
            raise
        except SQLAlchemyError:
            # If the log cannot be written, the run's result must still be saved.
            _log.exception("job %d: the end of its log cannot be written", self.claim.job_id)

    # --- while it runs -------------------------------------------------------------------------------------------

    def _follow(self, process: RunProcess) -> Ending | None:
        """Read the runner's lines until it closes its output; returns the ending it reported."""
        ending: Ending | None = None
        while True:
            self._enforce()
            try:
                line = process.next_line(within_seconds=0.2)
            except queue.Empty:
                continue
            if line is None:
                return ending
            message = parse_message(line)
            if isinstance(message, _ENDINGS):
                ending = message
            elif message is not None:
                self.events.take(message)

    def _gives_up(self) -> bool:
        """Whether to stop waiting for a database or store that is down, because the job is lost or must stop."""
        if self.stopping.is_set():
            if self.process is None:
                return True
            self._ask_to_stop()
        asked = self.asked_to_stop_at
        return self.lease.is_lost or (asked is not None and time.monotonic() - asked > self.settings.stop_grace_seconds)

    def _enforce(self) -> None:
        """Ask the runner to stop if it must, and kill it if it has not stopped in time.

        Raises:
            StaleAttempt: another worker has the job.
        """
        if self.lease.is_lost:
            raise StaleAttempt(f"job {self.claim.job_id} is no longer held by attempt {self.claim.attempt}")
        if self.lease.is_to_cancel or self.stopping.is_set():
            self._ask_to_stop()
        if self.asked_to_stop_at is None:
            self.limit = self._exceeded()
            if self.limit is not None:
                self._ask_to_stop()
        if self.asked_to_stop_at is None:
            return
        if self.process is not None and time.monotonic() - self.asked_to_stop_at > self.settings.stop_grace_seconds:
            self.process.signal(signal.SIGKILL)

    def _exceeded(self) -> Failed | None:
        """The failure for a limit that the run has exceeded: its total time, or its time without output."""
        now = time.monotonic()
        if self.claim.run_seconds + now - self.started > self.settings.max_run_seconds:
            return Failed(
                code=FailureCode.TIMED_OUT,
                message=f"it ran for {duration(self.settings.max_run_seconds)}, as long as a job may here; what it "
                "saved is kept, so retry it to go on from there, or send a smaller one",
            )
        if self.process is not None and now - self.process.heard > self.settings.no_progress_seconds:
            return Failed(
                code=FailureCode.NO_PROGRESS,
                message=f"it showed no sign of life for {duration(self.settings.no_progress_seconds)} and was stopped; "
                "look at the end of its log and at the host's disk and GPU, then retry it to go on from what it saved",
            )
        return None

    def _ask_to_stop(self) -> None:
        if self.asked_to_stop_at is None and self.process is not None:
            self.asked_to_stop_at = time.monotonic()
            self.process.signal(signal.SIGTERM)

    # --- how it ended --------------------------------------------------------------------------------------------

    def _judge(self, reported: Ending | None, returncode: int) -> Ending:
        """The ending to save: the reported one, or one from the limits and the runner's exit status."""
        if isinstance(reported, _SUCCESSES):
            return reported
        if self.limit is not None:
            return self.limit
        if reported is not None:
            return reported
        if self.asked_to_stop_at is not None:
            return Interrupted()
        if returncode == -signal.SIGKILL:
            return Failed(
                code=FailureCode.KILLED,
                message="the run was killed from outside (SIGKILL), as the kernel does when a host is out of memory; "
                "look at the host's memory, lower batch_size if it was short, and retry the job or send a smaller one",
            )
        cause = f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit status {returncode}"
        return Failed(
            code=FailureCode.INTERNAL,
            message=f"the run ended with {cause} and gave no reason; the job's log may hold it",
        )
