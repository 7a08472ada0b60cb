"""Renews a job's lease in a separate thread, so that a supervisor that waits for a disk or a store keeps its job."""

from __future__ import annotations

import logging
import threading
import time
from contextvars import copy_context
from datetime import timedelta
from types import TracebackType
from typing import Self

from app import jobs
from app.core.errors import StaleAttempt
from app.db.database import DATABASE_AWAY, Database
from gkl.answers import JobState
from gkl.outcome import Progress, Resources

_log = logging.getLogger(__name__)

_NEWS_SECONDS = 1.0


class Lease:
    """A job's lease, renewed while the context is open.

    If the database is down, the thread tries again every second, even after the lease has expired: the job still
    belongs to this worker if no other worker could claim it meanwhile.
    """

    def __init__(
        self, database: Database, claim: jobs.Claim, *, lease_seconds: float, heartbeat_seconds: float
    ) -> None:
        self._database, self._claim = database, claim
        self._lease, self._heartbeat_seconds = timedelta(seconds=lease_seconds), heartbeat_seconds
        self._pause = min(_NEWS_SECONDS, heartbeat_seconds)
        self._ended = threading.Event()
        # With a copy of this context, so that the thread's log lines name the job too.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._keep,), name=f"lease of job {claim.job_id}", daemon=True
        )
        self._progress: Progress | None = None
        self._resources: Resources | None = None
        self._has_news = False
        self.is_lost = False
        """True once another worker has the job, or the job has ended."""
        self.is_to_cancel = False
        """True once somebody has asked to cancel the job."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def tell(self, news: Progress | Resources) -> None:
        """Write progress or used resources with the next renewal, within about a second."""
        if isinstance(news, Progress):
            self._progress = news
        else:
            self._resources = news
        self._has_news = True

    def _keep(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(self._pause):
            if not self._has_news and time.monotonic() - last < self._heartbeat_seconds:
                continue
            self._has_news = False
            try:
                self._renew()
            except StaleAttempt:
                self.is_lost = True
                return
            except DATABASE_AWAY as error:
                _log.warning("job %d: the database cannot be used (%s)", self._claim.job_id, error.orig)
                self._has_news = True
                continue
            except Exception:  # noqa: BLE001 - logged; without this thread the lease would not be renewed
                _log.exception("job %d: its lease could not be renewed; trying again", self._claim.job_id)
                self._has_news = True
                continue
            last = time.monotonic()

    def _renew(self) -> None:
        with self._database.writing() as session:
            state = jobs.heartbeat(
                session, self._claim, lease=self._lease, progress=self._progress, resources=self._resources
            )
        if state is JobState.CANCELLING:
            self.is_to_cancel = True
