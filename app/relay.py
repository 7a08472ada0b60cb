"""The loop that keeps every job moving: publishes what is owed, takes jobs from lost workers, and cleans up."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta

from app import jobs
from app.broker import messages_waiting
from app.cleanup import clean
from app.database import DATABASE_AWAY
from app.outbox import requeue_unclaimed
from app.service import Service

_log = logging.getLogger(__name__)


class Relay:
    """One per service; several do no harm."""

    def __init__(self, service: Service) -> None:
        self.service, self.settings = service, service.settings
        self.began = self.last_cleanup = time.monotonic()
        self.away_at: float | None = None
        """When the database was last seen to be away."""
        self.announced_at: float | None = None

    def run(self, stopping: threading.Event) -> None:
        while True:
            try:
                self.round()
            except DATABASE_AWAY as error:
                self.away_at = time.monotonic()
                _log.warning("the database cannot be used (%s); trying again", error.orig)
            except Exception:  # noqa: BLE001 - logged; whatever one round meets, the next one must come
                _log.exception("a round of the relay failed; trying again")
            if stopping.wait(self.settings.relay_seconds):
                return

    def round(self) -> None:
        now = time.monotonic()
        lease = self.settings.lease_seconds
        # While the database was away nobody could renew a lease: first those who live have their turn.
        if self.away_at is None or now - self.away_at >= lease:
            self._reap()
        if self.announced_at is None or now - self.announced_at >= self.settings.republish_seconds:
            self._announce_again()
            self.announced_at = now
        self.service.publish_pending()
        # And who could not write has written, or has lost its job, before a file is taken for one that nobody names.
        in_touch_since = self.began if self.away_at is None else self.away_at
        if now - self.last_cleanup >= self.settings.cleanup_seconds and now - in_touch_since >= 2 * lease:
            self.last_cleanup = now
            clean(self.service)

    def _reap(self) -> None:
        backoff = timedelta(seconds=self.settings.lost_backoff_seconds)
        limit = self.settings.max_lost_leases
        for job in jobs.reap(self.service.database, max_lost_leases=limit, backoff=backoff):
            _log.warning("job %d: its worker was lost; the job is now %s", job.id, job.state)

    def _announce_again(self) -> None:
        """At first all that is queued: a broker that was started with this process knows of nothing."""
        waiting = messages_waiting(self.settings)
        if waiting is None or waiting > 0:
            # Whoever takes those takes all that is due; more of them would only pile up.
            return
        after = timedelta(seconds=0 if self.announced_at is None else self.settings.republish_seconds)
        with self.service.database.writing() as session:
            requeue_unclaimed(session, after=after)
