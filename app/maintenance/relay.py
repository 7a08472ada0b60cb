"""The relay: a loop that publishes wake-up messages, takes jobs from lost workers, and cleans up."""

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
from app.jobs.broker import announce_relay, clear_relay, messages_waiting
from app.jobs.outbox import requeue_unclaimed
from app.maintenance.cleanup import clean

_log = logging.getLogger(__name__)


class Relay:
    """The relay's loop. A service needs one; several do no harm."""

    def __init__(self, service: Service) -> None:
        self.service, self.settings = service, service.settings
        settings = self.settings
        self.last_cleanup = self.away_at = time.monotonic()
        # While the database was down no worker could renew its lease, so live workers renew their leases first. A
        # relay that has just started may have missed an outage; but it waits only briefly, in case it crashes often.
        self.reaps_from = self.away_at + min(settings.lease_seconds, 2 * settings.heartbeat_seconds)
        self.announced_at: float | None = None
        # Certificates of earlier versions are searched at the start, and then after each cleanup.
        self.has_missing_points = True
        self.unreadable_certificates: set[str] = set()

    def run(self, stopping: threading.Event) -> None:
        while True:
            announce_relay(self.settings)
            if self._database_is_here():
                duties = (self._reap, self._announce_again, self.service.publish_pending, self._clean)
                for duty in (*duties, self._record_missing_points):
                    try:
                        duty()
                    except DATABASE_AWAY as error:
                        _log.warning("the database cannot be used (%s); trying again", error.orig)
                    except StoreAway as error:
                        _log.warning("%s; what needs it waits", error)
                    except Exception:  # noqa: BLE001 - logged; a failed duty must not stop the others
                        _log.exception("a duty of the relay failed; trying again")
            if stopping.wait(self.settings.relay_seconds):
                clear_relay(self.settings)
                return

    def _database_is_here(self) -> bool:
        """Checks with a write, since a full disk or another's lock also prevents heartbeats."""
        began = time.monotonic()
        try:
            self.service.database.check_can_write()
        except DATABASE_AWAY as error:
            self._note_away()
            _log.warning("the database cannot be used (%s); trying again", error.orig)
            return False
        if time.monotonic() - began > self.settings.heartbeat_seconds:
            # The database hung, and meanwhile no worker could renew its lease.
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
        """Publish messages of queued jobs again; in the first round all, since a new broker has none."""
        now, again = time.monotonic(), self.settings.republish_seconds
        if self.announced_at is not None and now - self.announced_at < again:
            return
        with self.service.database.writing() as session:
            jobs.register_all_submitters(session)
        after = timedelta(seconds=0 if self.announced_at is None else again)
        self.announced_at = now
        waiting = messages_waiting(self.settings)
        if waiting is None or waiting > 0:
            # The workers woken by these messages claim all due jobs; more messages would only pile up.
            return
        with self.service.database.writing() as session:
            requeue_unclaimed(session, after=after)

    def _clean(self) -> None:
        """Clean up, once the database has been up for two leases: by then every worker has written its rows or lost its
        job."""
        now = time.monotonic()
        if now - self.last_cleanup < self.settings.cleanup_seconds:
            return
        if now - self.away_at < 2 * self.settings.lease_seconds:
            return
        self.last_cleanup = now
        # Count events before they are removed, even if nobody scrapes the metrics.
        metric_sums.count_new_events(self.service.database)
        clean(self.service)
        self.has_missing_points = True

    def _record_missing_points(self) -> None:
        if self.has_missing_points:
            service = self.service
            self.has_missing_points = robust_points.record_missing(
                service.database, service.store, self.unreadable_certificates
            )
