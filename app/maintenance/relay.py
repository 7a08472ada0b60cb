"""The loop that keeps every job moving: publishes what is owed, takes jobs from lost workers, and cleans up."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta

from app import jobs
from app.boards import robust_points
from app.core.errors import StoreAway
from app.db.database import DATABASE_AWAY
from app.http.service import Service
from app.jobs import metric_sums
from app.jobs.broker import forget_relay, messages_waiting, tell_of_relay
from app.jobs.outbox import requeue_unclaimed
from app.maintenance.cleanup import clean

_log = logging.getLogger(__name__)


class Relay:
    """One per service; several do no harm."""

    def __init__(self, service: Service) -> None:
        self.service, self.settings = service, service.settings
        settings = self.settings
        self.last_cleanup = self.away_at = time.monotonic()
        # While the database was away nobody could renew a lease: first those who live have their turn. A relay that
        # has just begun may not have seen it, but must not wait for long either: it may be one that dies often.
        self.reaps_from = self.away_at + min(settings.lease_seconds, 2 * settings.heartbeat_seconds)
        self.announced_at: float | None = None
        # Certificates of earlier versions: looked for at first, and then as often as is cleaned up.
        self.has_missing_points = True
        self.unreadable_certificates: set[str] = set()

    def run(self, stopping: threading.Event) -> None:
        while True:
            tell_of_relay(self.settings)
            if self._database_is_here():
                duties = (self._reap, self._announce_again, self.service.publish_pending, self._clean)
                for duty in (*duties, self._record_missing_points):
                    try:
                        duty()
                    except DATABASE_AWAY as error:
                        _log.warning("the database cannot be used (%s); trying again", error.orig)
                    except StoreAway as error:
                        _log.warning("%s; what needs it waits", error)
                    except Exception:  # noqa: BLE001 - logged; what one duty meets must not keep the others
                        _log.exception("a duty of the relay failed; trying again")
            if stopping.wait(self.settings.relay_seconds):
                forget_relay(self.settings)
                return

    def _database_is_here(self) -> bool:
        """Asked by writing: a disk that is full, or another's lock, keeps heartbeats away too."""
        began = time.monotonic()
        try:
            self.service.database.check_can_write()
        except DATABASE_AWAY as error:
            self._note_away()
            _log.warning("the database cannot be used (%s); trying again", error.orig)
            return False
        if time.monotonic() - began > self.settings.heartbeat_seconds:
            # It hung, and for as long nobody could renew a lease.
            self._note_away()
        return True

    def _note_away(self) -> None:
        self.away_at = time.monotonic()
        self.reaps_from = self.away_at + self.settings.lease_seconds

    def _reap(self) -> None:
        if time.monotonic() < self.reaps_from:
            return
        backoff = timedelta(seconds=self.settings.lost_backoff_seconds)
        limit = self.settings.max_lost_leases
        for job in jobs.reap(self.service.database, max_lost_leases=limit, backoff=backoff):
            _log.warning("job %d: its worker was lost; the job is now %s", job.id, job.state)

    def _announce_again(self) -> None:
        """At first all that is queued: a broker that was started with this process knows of nothing."""
        now, again = time.monotonic(), self.settings.republish_seconds
        if self.announced_at is not None and now - self.announced_at < again:
            return
        with self.service.database.writing() as session:
            jobs.register_all_submitters(session)
        after = timedelta(seconds=0 if self.announced_at is None else again)
        self.announced_at = now
        waiting = messages_waiting(self.settings)
        if waiting is None or waiting > 0:
            # Whoever takes those takes all that is due; more of them would only pile up.
            return
        with self.service.database.writing() as session:
            requeue_unclaimed(session, after=after)

    def _clean(self) -> None:
        """Only after the database was here for two leases: whoever could not write has written, or lost its job."""
        now = time.monotonic()
        if now - self.last_cleanup < self.settings.cleanup_seconds:
            return
        if now - self.away_at < 2 * self.settings.lease_seconds:
            return
        self.last_cleanup = now
        # What is removed must be counted before, also where nobody asks for metrics.
        metric_sums.keep(self.service.database)
        clean(self.service)
        self.has_missing_points = True

    def _record_missing_points(self) -> None:
        if self.has_missing_points:
            service = self.service
            self.has_missing_points = robust_points.record_missing(
                service.database, service.store, self.unreadable_certificates
            )
