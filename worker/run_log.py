"""Copies a run's standard error into the job's log in the database. The run never waits for it."""

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
    """The log of one attempt. Text waits in memory while the database is down; above 1 MiB the oldest is dropped."""

    def __init__(self, database: Database, claim: jobs.Claim, *, max_bytes: int) -> None:
        self._database, self._claim, self._max_bytes = database, claim, max_bytes
        self._waiting = bytearray()
        self._dropped = 0
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        """Held while waiting text is written, so that it keeps its order and is written once."""
        self._ended = threading.Event()
        # With a copy of this context, so that the thread's log lines name the job too.
        self._thread = threading.Thread(target=copy_context().run, args=(self._write_now_and_then,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. Call `write` afterwards for the text that still waits."""
        self._ended.set()

    def add(self, text: bytes) -> None:
        with self._lock:
            self._waiting += text
            excess = len(self._waiting) - _MOST_WAITING_BYTES
            if excess > 0:
                del self._waiting[:excess]
                self._dropped += excess

    def write(self) -> None:
        """Write the waiting text to the database.

        Raises:
            StaleAttempt: another worker has the job.
            OperationalError, InterfaceError: the database is down; the text is kept.
        """
        with self._writing:
            with self._lock:
                text, dropped = bytes(self._waiting), self._dropped
            if not text:
                return
            with self._database.writing() as session:
                self._append(session, text, dropped)
            with self._lock:
                # Bytes dropped meanwhile are the oldest ones, which have just been written: they are not lost.
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
