"""The work that a message or a poll starts: claim jobs and run them one after another, until none is due."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta

from celery import Celery
from opentelemetry import trace
from pydantic import ValidationError
from structlog.contextvars import bound_contextvars

from app import jobs
from app.core.errors import NotFound, StaleAttempt, StoreAway
from app.core.settings import Settings
from app.db.database import DATABASE_AWAY, Database
from app.jobs.broker import WAKE_TASK
from app.store import ArtifactStore
from gkl.errors import FailureCode, NoSpaceLeft
from gkl.files import is_disk_full
from worker.presence import problem
from worker.run_directories import remove_left
from worker.supervisor import Supervisor

_log = logging.getLogger(__name__)
# Records nothing unless `app.core.tracing` was set up in this process.
_tracer = trace.get_tracer(__name__)


@dataclass(frozen=True)
class Worker:
    """Runs jobs, one at a time."""

    settings: Settings
    database: Database
    store: ArtifactStore
    name: str
    stopping: threading.Event
    """Set when this process is asked to stop."""
    busy: threading.Lock = field(default_factory=threading.Lock)
    """Held by the thread that runs jobs, so that only one does."""

    def register(self, celery: Celery) -> None:
        """Register the task that wakes this worker."""

        @celery.task(name=WAKE_TASK)
        def wake(job_id: int) -> None:
            # A message only says that there is work. The claim takes the job that is due first, whatever the message
            # names, so a message that comes twice does no harm.
            with self.busy:
                self.run_all_due()

    def poll(self) -> None:
        """Look for due jobs every `poll_seconds` while idle, until asked to stop.

        So a job runs even if its message was lost, or if Celery no longer receives messages. Also removes files that
        killed workers left.
        """
        cleaned_at = -math.inf
        while not self.stopping.wait(self.settings.poll_seconds):
            if time.monotonic() - cleaned_at >= self.settings.cleanup_seconds:
                cleaned_at = time.monotonic()
                self._remove_left()
            if self.busy.acquire(blocking=False):
                try:
                    self.run_all_due()
                except Exception:  # noqa: BLE001 - logged; this thread must continue after any error
                    _log.exception("looking for work failed; trying again")
                finally:
                    self.busy.release()

    def _remove_left(self) -> None:
        try:
            remove_left(self.settings, self.database)
            self.store.remove_abandoned()
        except Exception:  # noqa: BLE001 - logged; this thread must continue after any error
            _log.exception("what killed workers left stays for now")

    def run_all_due(self) -> None:
        """Run jobs until none is due, whether or not their messages have come."""
        while self.run_next() is not None:
            pass

    def run_next(self) -> int | None:
        """Claim and run one job. Returns its id, or None if no job is due."""
        claim = self._claim()
        if claim is None:
            return None
        # Every line logged meanwhile names the job and the attempt, also in the supervisor's threads.
        about = {"job_id": claim.job_id, "attempt": claim.attempt}
        with bound_contextvars(**about), _tracer.start_as_current_span("run job", attributes=about):
            self._run(claim)
        # Jobs that follow from it need no message from here: this worker claims next, and the relay wakes others.
        return claim.job_id

    def _run(self, claim: jobs.Claim) -> None:
        _log.info("job %d, attempt %d: started", claim.job_id, claim.attempt)
        try:
            with Supervisor(self.settings, self.database, self.store, claim, self.stopping) as supervisor:
                ending = supervisor.run().type
                trace.get_current_span().set_attribute("ending", ending)
                _log.info("job %d: %s", claim.job_id, ending)
        except StaleAttempt:
            _log.warning("job %d was taken from this worker; its run was stopped and not counted", claim.job_id)
        except DATABASE_AWAY:
            # This is not the job's fault: its lease will expire, and another attempt resumes from its last checkpoint.
            _log.exception("job %d: the database was away for too long", claim.job_id)
        except StoreAway as error:
            self._hand_back(claim, str(error))
        except NotFound as error:
            self._fail(claim, FailureCode.INVALID_INPUT, f"a file that the job needs cannot be read: {error}")
        except ValidationError as error:
            self._fail(claim, FailureCode.INVALID_INPUT, f"this version cannot run the job's spec: {error}")
        except NoSpaceLeft as error:
            self._fail(claim, error.code, str(error))
        except Exception as error:  # noqa: BLE001 - logged, and saved as the job's failure
            # After any error the job must not stay 'running' without a reason.
            _log.exception("job %d: the worker failed", claim.job_id)
            if is_disk_full(error):
                sentence = f"the disk of {self.name} is full; make room there and retry the job"
                self._fail(claim, FailureCode.NO_SPACE_LEFT, sentence)
            else:
                sentence = f"the worker {self.name} failed while it ran this job; its log has the cause"
                self._fail(claim, FailureCode.INTERNAL, sentence)

    def _claim(self) -> jobs.Claim | None:
        if self.stopping.is_set():
            return None
        if problem(self.settings, self.store) is not None:
            # Jobs wait for a repair or another worker, instead of failing one after the other. The problem is in this
            # worker's row, and once in its log.
            return None
        try:
            with self.database.writing() as session:
                return jobs.claim(session, worker=self.name, lease=timedelta(seconds=self.settings.lease_seconds))
        except DATABASE_AWAY as error:
            _log.warning("the database cannot be used (%s); looking for work again later", error.orig)
            return None

    def _hand_back(self, claim: jobs.Claim, reason: str) -> None:
        try:
            self.database.write_patiently(
                lambda session: jobs.hand_back(session, claim, reason=reason), give_up=self.stopping.is_set
            )
        except StaleAttempt:
            _log.warning("job %d was taken from this worker before it could be handed back", claim.job_id)
        except DATABASE_AWAY:
            _log.exception("job %d could not be handed back; its lease will end", claim.job_id)

    def _fail(self, claim: jobs.Claim, code: FailureCode, message: str) -> None:
        try:
            self.database.write_patiently(
                lambda session: jobs.fail(session, claim, code, message), give_up=self.stopping.is_set
            )
        except StaleAttempt:
            _log.warning(
                "job %d was taken from this worker; that it failed here (%s) is not counted", claim.job_id, code
            )
        except DATABASE_AWAY:
            _log.exception("job %d: that it failed could not be written; its lease will end", claim.job_id)
