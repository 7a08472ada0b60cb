"""Carries what a run writes to its standard error into the job's log, at its own pace: the run never waits for it."""

from __future__ import annotations

import logging
import threading
from contextvars import copy_context

from sqlalchemy.orm import Session

from app import jobs
from app.core.errors import StaleAttempt
from app.db.database import DATABASE_AWAY, Database
from app.jobs import job_log

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0
_MOST_WAITING_BYTES = 1024 * 1024


class RunLog:
    """Of one attempt. Lines wait here while the database is away; of too many the oldest are dropped."""

    def __init__(self, database: Database, claim: jobs.Claim, *, max_bytes: int) -> None:
        self._database, self._claim, self._max_bytes = database, claim, max_bytes
        self._waiting = bytearray()
        self._dropped = 0
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        """Held while waiting bytes become rows: they keep their order, and go once."""
        self._ended = threading.Event()
        # In this context: what the thread logs belongs to the job too.
        self._thread = threading.Thread(target=copy_context().run, args=(self._write_now_and_then,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What still waits is left to the last `write`."""
        self._ended.set()

    def add(self, text: bytes) -> None:
        with self._lock:
            self._waiting += text
            excess = len(self._waiting) - _MOST_WAITING_BYTES
            if excess > 0:
                del self._waiting[:excess]
                self._dropped += excess

    def write(self) -> None:
        """Write what waits.

        Raises:
            StaleAttempt: the job is another worker's.
            OperationalError, InterfaceError: the database is away; it waits on.
        """
        with self._writing:
            with self._lock:
                text, dropped = bytes(self._waiting), self._dropped
            if not text:
                return
            with self._database.writing() as session:
                self._append(session, text, dropped)
            with self._lock:
                # What was dropped meanwhile is the oldest of what has just been written.
                lost = self._dropped - dropped
                del self._waiting[: max(0, len(text) - lost)]
                self._dropped = max(0, lost - len(text))

    def _append(self, session: Session, text: bytes, dropped: int) -> None:
        jobs.lock_claimed(session, self._claim)
        if dropped:
            text = b"--- %d bytes of this log were dropped: they came too fast ---\n" % dropped + text
        job_log.append(session, self._claim.job_id, text, max_bytes=self._max_bytes)

    def _write_now_and_then(self) -> None:
        while not self._ended.wait(_PAUSE_SECONDS):
            try:
                self.write()
            except StaleAttempt:
                return
            except DATABASE_AWAY as error:
                _log.warning("job %d: its log waits for the database (%s)", self._claim.job_id, error.orig)
            except Exception:  # noqa: BLE001 - logged; a log that cannot be written must not end the run
                _log.exception("job %d: its log cannot be written", self._claim.job_id)
