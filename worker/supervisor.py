"""Runs a job as a process of its own, and watches over it.

The runner prints JSON lines on its standard output; its standard error is the job's log. Whatever happens
to it, a crash, the kernel's out-of-memory killer, a hang in a driver, happens to it and not to the worker.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

from joblib import cpu_count
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app import jobs
from app.boards import strongest_certificates
from app.core.errors import NotFound, StaleAttempt, StoreAway
from app.core.formatting import duration
from app.core.settings import Settings
from app.db.database import DATABASE_AWAY, Database
from app.db.tables import FileKind
from app.evidence import external, transfers
from app.jobs import job_files, workers
from app.jobs.broker import hears_relay
from app.store import ArtifactStore
from gkl.errors import FailureCode
from gkl.outcome import (
    MESSAGE,
    BlockSaved,
    CheckpointSaved,
    Ending,
    EvaluationOutcome,
    Event,
    ExternalOutcome,
    Failed,
    Interrupted,
    Progress,
    ProvisionalVerdict,
    ReportOutcome,
    Resources,
    ShardOutcome,
    TrainOutcome,
    TransferOutcome,
    WeightsConverted,
)
from gkl.spec import (
    PROTOCOLS_WITH_MORE,
    PUBLISHED_WEIGHTS,
    EvaluateSpec,
    ExternalSpec,
    ReportSpec,
    TrainSpec,
    TransferSpec,
)
from worker.lease import Lease
from worker.prepared import Run, start_run
from worker.results import read_robust_points, save_provisional, save_result, store_result
from worker.run_directories import run_directory
from worker.run_log import RunLog
from worker.runner import CERTIFICATE_FILE, EXAMPLES_FILE, SOURCE_FILE, RunOrder

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_STORE_SECONDS = 5.0
_SUCCESSES = (TrainOutcome, EvaluationOutcome, ShardOutcome, ExternalOutcome, ReportOutcome, TransferOutcome)
_ENDINGS = (*_SUCCESSES, Failed, Interrupted)
_IS_FOR_RUNS = re.compile(
    # The process and where its programs and libraries are.
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TMP|TEMP|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV|CC|CXX"
    r"|PYTHON(PATH|HOME|UNBUFFERED|HASHSEED|DONTWRITEBYTECODE|WARNINGS|FAULTHANDLER)|MALLOC_\w+"
    # The GPU and the threads.
    r"|(CUDA|CUDNN|CUBLAS|NVIDIA|NCCL|HIP|HSA|MIOPEN|ROCM|ROCR|OMP|KMP|GOMP|MKL|OPENBLAS|NUMEXPR|TRITON)_\w+|(TORCH|PYTORCH)\w*"
    # How RobustBench's loader reaches published weights, and where it keeps them.
    r"|(?i:(HTTP|HTTPS|ALL|NO)_PROXY)|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|XDG_CACHE_HOME|HF_(HOME|HUB_CACHE|HUB_OFFLINE)"
)


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
        self.directory = run_directory(settings, claim)
        self.lease = Lease(
            database, claim, lease_seconds=settings.lease_seconds, heartbeat_seconds=settings.heartbeat_seconds
        )
        self.process: Run | None = None
        self.log = RunLog(database, claim, max_bytes=settings.max_log_bytes)
        self.log_thread: threading.Thread
        self.started = self.heard = time.monotonic()
        self.asked_to_stop_at: float | None = None
        self.superseded: set[str] = set()
        """Checkpoints of this attempt that nothing needs any more, until they are removed."""
        self.limit: Failed | None = None
        """Why it was asked to stop, if it was for a limit."""

    def __enter__(self) -> Self:
        # There already only where a database was set back, to before this attempt.
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
                self._end(self.process, within_seconds=0)
                # What it did not read of its order cannot be flushed any more.
                with suppress(BrokenPipeError):
                    self.process.stdin.close()
                # What it said last, where it did not come to its end.
                with suppress(StaleAttempt, SQLAlchemyError):
                    self.log.write()
            shutil.rmtree(self.directory, ignore_errors=True)
        finally:
            self.lease.__exit__(kind, error, trace)

    def run(self) -> Ending:
        """Run the job to its end and save what it came to.

        Raises:
            StaleAttempt: the job was given to another worker; nothing of this run is counted.
            NoSpaceLeft: the disk of the artifact store is full.
            StoreAway: it was away until this worker, or the job, was to stop.
        """
        weights, converted = self._with_store(self._fetch_files)
        others = self._with_store(self._others)
        self.log.add(f"--- attempt {self.claim.attempt}, {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC ---\n".encode())
        self.process = self._start(weights, converted, others)
        ending = self._follow(self.process)
        returncode = self._end(self.process, within_seconds=self.settings.stop_grace_seconds)
        # Whoever sees that the job has ended finds the whole log.
        self.log_thread.join(timeout=5)
        self._write_log()
        ending = self._judge(ending, returncode)
        points = read_robust_points(ending, self.directory)
        stored = self._with_store(lambda: store_result(self.store, ending, self.directory))
        save_result(self.database, self.claim, ending, stored, points=points, give_up=self._gives_up)
        return ending

    # --- the runner's process ------------------------------------------------------------------------------------

    def _fetch_files(self) -> tuple[str | None, str | None]:
        """Bring what the run starts from into its directory.

        Returns:
            The file names of given weights, and of what an earlier run converted them to.
        """
        left = self._write(lambda session: job_files.to_go_on_from(session, self.claim.job_id))
        for file in left:
            try:
                self.store.fetch(file.sha256, self.directory / file.file)
            except NotFound:
                _log.warning("job %d: %s is gone or damaged", self.claim.job_id, file.file)
                said = (
                    f"--- {file.file}, which an earlier attempt saved, is gone or damaged; it is computed again ---\n"
                )
                self.log.add(said.encode())
        spec = self.claim.spec
        if isinstance(spec, ReportSpec):
            self.store.fetch(spec.certificate, self.directory / CERTIFICATE_FILE)
            return None, None
        if isinstance(spec, ExternalSpec):
            self._fetch_for_check(spec)
        if isinstance(spec, TransferSpec):
            self._fetch_for_transfer(spec)
        if isinstance(spec, TrainSpec) or spec.weights == PUBLISHED_WEIGHTS:
            return None, None
        # Converted or not: the run makes sure that these are the weights that its verdict will name.
        self.store.fetch(spec.weights, self.directory / "weights")
        known = self._write(lambda session: job_files.converted(session, spec.weights))
        if known is None:
            return "weights", None
        try:
            self.store.fetch(known, self.directory / "converted.safetensors")
        except NotFound:
            return "weights", None
        return "weights", "converted.safetensors"

    def _fetch_for_check(self, spec: ExternalSpec) -> None:
        """The examples, and what they are to be merged with."""
        known = self._write(lambda session: external.certificate_for(session, self.claim.job_id))
        self.store.fetch(known, self.directory / CERTIFICATE_FILE)
        self.store.fetch(spec.examples, self.directory / EXAMPLES_FILE)

    def _fetch_for_transfer(self, spec: TransferSpec) -> None:
        """The certificate whose examples are replayed, and the one of the network that they are tried on."""
        known = self._write(lambda session: transfers.certificate_of_target(session, self.claim.job_id))
        self.store.fetch(known, self.directory / CERTIFICATE_FILE)
        self.store.fetch(spec.source, self.directory / SOURCE_FILE)

    def _others(self) -> list[Path]:
        """Files of other models' certificates, read where they are stored: they may be large."""
        spec = self.claim.spec
        if not isinstance(spec, EvaluateSpec) or spec.evaluation.protocol not in PROTOCOLS_WITH_MORE:
            return []
        if self.claim.shard_index is not None:
            # Whoever puts the shards together tries them.
            return []
        known = self._write(lambda session: strongest_certificates.of_others(session, spec))
        paths = []
        for sha256 in known:
            try:
                paths.append(self.store.path(sha256))
            except NotFound:
                _log.warning("job %d: the certificate %s of another entry is gone", self.claim.job_id, sha256)
        return paths

    def _threads(self) -> int:
        """A run's share of the cores that this process may use: those of its control group and affinity."""
        sharing = self._write(
            lambda session: workers.count_on(
                session, socket.gethostname(), lease=timedelta(seconds=self.settings.lease_seconds)
            )
        )
        cores: int = cpu_count()
        return max(1, cores // max(1, sharing))

    def _start(self, weights: str | None, converted: str | None, others: list[Path]) -> Run:
        process = start_run(run_environment(self._threads()))
        order = RunOrder(
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
        self.heard = time.monotonic()
        # Threads in this context: what they log belongs to the job too.
        copy_log = partial(copy_context().run, self._copy_log, process.stderr)
        self.log_thread = threading.Thread(target=copy_log, daemon=True)
        self.log_thread.start()
        # The pipe stays open: its end tells the runner that this process is gone.
        try:
            process.stdin.write(order.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            _log.warning("job %d: its runner ended before it had read its order", self.claim.job_id)
        return process

    def _copy_log(self, stderr: IO[bytes]) -> None:
        with stderr:
            # Lines, or what there is of one: a progress bar of a library may never end its line.
            while chunk := os.read(stderr.fileno(), 64 * 1024):
                self.log.add(chunk)

    def _write_log(self) -> None:
        try:
            self.database.patiently(self.log.write, give_up=self._gives_up)
        except DATABASE_AWAY:
            raise
        except SQLAlchemyError:
            # A log that cannot be written must not cost what the run came to.
            _log.exception("job %d: the end of its log cannot be written", self.claim.job_id)

    def _end(self, process: Run, *, within_seconds: float) -> int:
        """Wait for the runner, then end what is left of it and of the processes it started; its exit status."""
        deadline = time.monotonic() + within_seconds
        if process.returncode is not None:
            return process.returncode
        # Without reaping it: until then its number, which is the group's too, cannot become another process's.
        while not process.has_ended():
            if time.monotonic() >= deadline:
                break
            time.sleep(0.02)
        self._signal(signal.SIGKILL)
        return process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        if self.process.returncode is not None:
            # Reaped: its number may be somebody else's by now.
            return
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            _log.debug("the runner of job %d had ended already", self.claim.job_id)

    # --- while it runs -------------------------------------------------------------------------------------------

    def _follow(self, process: Run) -> Ending | None:
        """Read the runner's lines until it closes its output; returns the ending it reported."""
        lines: queue.Queue[bytes | None] = queue.Queue()
        read_lines = partial(copy_context().run, self._read_lines, process, lines)
        threading.Thread(target=read_lines, daemon=True).start()
        ending: Ending | None = None
        while True:
            self._enforce()
            try:
                line = lines.get(timeout=0.2)
            except queue.Empty:
                continue
            if line is None:
                return ending
            message = _parse(line)
            if isinstance(message, _ENDINGS):
                ending = message
            elif message is not None:
                self._take(message)

    def _read_lines(self, process: Run, lines: queue.Queue[bytes | None]) -> None:
        try:
            with process.stdout as stdout:
                for line in stdout:
                    # Noted here: the run is not to blame for what its supervisor waits for.
                    self.heard = time.monotonic()
                    lines.put(line)
        finally:
            lines.put(None)

    def _take(self, event: Event) -> None:
        if isinstance(event, Progress | Resources):
            self.lease.tell(event)
        elif isinstance(event, CheckpointSaved):
            self._keep(FileKind.RESUME, event.file, event.epoch)
        elif isinstance(event, BlockSaved):
            self._keep(FileKind.BLOCK, event.file, event.number)
        elif isinstance(event, WeightsConverted):
            self._keep_converted(event.file)
        elif isinstance(event, ProvisionalVerdict):
            save_provisional(self.database, self.claim, event.outcome, give_up=self._gives_up)
        else:
            self._write(lambda session: jobs.record(session, self.claim, event))

    def _keep(self, kind: FileKind, file: str, number: int) -> None:
        """Store what a later attempt can go on from."""
        try:
            stored = self._with_store(lambda: self.store.put(self.directory / file))
        except FileNotFoundError:
            # The runner keeps only its newest ones, and has gone on faster than they are copied.
            return

        def keep(session: Session) -> list[str]:
            jobs.hold(session, self.claim)
            job_id = self.claim.job_id
            if kind is FileKind.RESUME:
                return job_files.add_resume_point(session, job_id, number, file=file, stored=stored)
            job_files.add(session, job_id, kind, number=number, file=file, stored=stored)
            return []

        self.superseded.update(self._write(keep))
        self._discard_superseded()

    def _discard_superseded(self) -> None:
        """Now, not with the next cleanup: a training that is quick makes many of them.

        Nor without a relay: then nothing is ever removed, so that a backup that was begun holds all that its rows name.
        """
        if not self.superseded or not hears_relay(self.settings):
            return

        def is_named(hashes: list[str]) -> set[str]:
            with self.database.reading() as session:
                return job_files.named(session, hashes)

        try:
            self.superseded -= self.store.discard(
                self.superseded, is_named, older_than_seconds=self.settings.young_seconds
            )
        except (StoreAway, SQLAlchemyError, OSError) as error:
            _log.warning("job %d: superseded checkpoints are left to the cleanup (%s)", self.claim.job_id, error)

    def _keep_converted(self, file: str) -> None:
        spec = self.claim.spec
        assert isinstance(spec, EvaluateSpec | ExternalSpec | TransferSpec), "only these read weights"
        stored = self._with_store(lambda: self.store.put(self.directory / file))

        def keep(session: Session) -> None:
            jobs.hold(session, self.claim)
            job_files.record_converted(session, self.claim.job_id, spec.weights, stored)

        self._write(keep)

    def _write(self, change: Callable[[Session], _T]) -> _T:
        """The run goes on while the database is away."""
        return self.database.write_patiently(change, give_up=self._gives_up)

    def _with_store(self, use: Callable[[], _T]) -> _T:
        """The run goes on while the store is away; for so long as a run may be silent, then others may have the GPU."""
        began = time.monotonic()
        waited = False
        while True:
            try:
                found = use()
            except StoreAway as error:
                is_long = time.monotonic() - began > self.settings.no_progress_seconds
                if is_long or self.lease.is_to_cancel or self._gives_up():
                    raise
                if not waited:
                    self.log.add(f"--- waiting: {error} ---\n".encode())
                waited = True
                time.sleep(_STORE_SECONDS)
                continue
            if waited:
                self.log.add(b"--- the artifact store is back ---\n")
            return found

    def _gives_up(self) -> bool:
        """Whether to wait no longer for a database or store that is away: the job will be taken from here."""
        if self.stopping.is_set():
            if self.process is None:
                return True
            self._ask_to_stop()
        asked = self.asked_to_stop_at
        return self.lease.is_lost or (asked is not None and time.monotonic() - asked > self.settings.stop_grace_seconds)

    def _enforce(self) -> None:
        """
        Raises:
            StaleAttempt: the job is another worker's.
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
        if time.monotonic() - self.asked_to_stop_at > self.settings.stop_grace_seconds:
            self._signal(signal.SIGKILL)

    def _exceeded(self) -> Failed | None:
        now = time.monotonic()
        if self.claim.run_seconds + now - self.started > self.settings.max_run_seconds:
            return Failed(
                code=FailureCode.TIMED_OUT,
                message=f"it ran for {duration(self.settings.max_run_seconds)}, as long as a job may here; what it "
                "saved is kept, so retry it to go on from there, or send a smaller one",
            )
        if now - self.heard > self.settings.no_progress_seconds:
            return Failed(
                code=FailureCode.NO_PROGRESS,
                message=f"it showed no sign of life for {duration(self.settings.no_progress_seconds)} and was stopped; "
                "look at the end of its log and at the host's disk and GPU, then retry it to go on from what it saved",
            )
        return None

    def _ask_to_stop(self) -> None:
        if self.asked_to_stop_at is None and self.process is not None:
            self.asked_to_stop_at = time.monotonic()
            self._signal(signal.SIGTERM)

    # --- what became of it ---------------------------------------------------------------------------------------

    def _judge(self, reported: Ending | None, returncode: int) -> Ending:
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


def run_environment(threads: int) -> dict[str, str]:
    """What a run needs of this process's environment: no address and no secret of the service. A proxy's address is
    among it, with the password if it has one: RobustBench's loader downloads what is missing."""
    given = {name: value for name, value in os.environ.items() if _IS_FOR_RUNS.fullmatch(name)}
    # Threads that wait for each other in a loop keep whoever else wants their cores from ending, and so each other.
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"} | given


def _parse(line: bytes) -> Event | Ending | None:
    try:
        return MESSAGE.validate_json(line)
    except ValidationError:
        _log.warning("the runner printed something that is no message: %.200r", line)
        return None
