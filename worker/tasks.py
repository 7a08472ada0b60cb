"""What a message sets off: claim a job, supervise its run, end it with its result."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import timedelta

from celery import Celery
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from app import jobs
from app.artifacts import ArtifactStore
from app.broker import WAKE_TASK
from app.database import Database
from app.errors import StaleAttempt
from app.outbox import Publish, publish_pending
from app.settings import Settings
from gkl.errors import FailureCode
from worker.results import save_result
from worker.supervisor import Supervisor

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """One place to run jobs, one at a time."""

    settings: Settings
    database: Database
    store: ArtifactStore
    publish: Publish
    name: str
    stopping: threading.Event
    """Set when this process is told to stop."""

    def register(self, celery: Celery) -> None:
        @celery.task(name=WAKE_TASK)
        def wake(job_id: int) -> None:
            # The message says that there is work, not which: the claim takes what is due first, and a
            # message that came twice finds nothing.
            self.run_next()

    def run_next(self) -> int | None:
        """Run the job that is due; returns its id, or None if there was none."""
        if self.stopping.is_set():
            return None
        with self.database.writing() as session:
            claim = jobs.claim(session, worker=self.name, lease=timedelta(seconds=self.settings.lease_seconds))
        if claim is None:
            return None
        _log.info("job %d, attempt %d: started", claim.job_id, claim.attempt)
        try:
            self._run(claim)
        except StaleAttempt:
            _log.warning("job %d was taken from this worker; its run was stopped and not counted", claim.job_id)
        except OperationalError:
            # Not the job's fault: its lease will end, and another attempt go on from its last checkpoint.
            _log.exception("job %d: the database was away for too long", claim.job_id)
        except ValidationError as error:
            self._fail(claim, FailureCode.INVALID_INPUT, f"this version cannot run the job's spec: {error}")
        except Exception:  # noqa: BLE001 - logged, and told to the job
            # Whatever went wrong here, the job must not stay 'running' without a word.
            _log.exception("job %d: the worker failed", claim.job_id)
            sentence = f"the worker {self.name} failed while it ran this job; its log has the cause"
            self._fail(claim, FailureCode.INTERNAL, sentence)
        publish_pending(self.database, self.publish)
        return claim.job_id

    def _run(self, claim: jobs.Claim) -> None:
        with Supervisor(self.settings, self.database, self.store, claim, self.stopping) as supervisor:
            ending = supervisor.run()
            patience = self.settings.lease_seconds
            save_result(self.database, self.store, claim, ending, supervisor.directory, patience_seconds=patience)
            _log.info("job %d: %s", claim.job_id, ending.type)

    def _fail(self, claim: jobs.Claim, code: FailureCode, message: str) -> None:
        self.database.write_patiently(
            lambda session: jobs.fail(session, claim, code, message), seconds=self.settings.lease_seconds
        )
