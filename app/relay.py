"""The loop that keeps every job moving: publishes what is owed, takes jobs from lost workers, and cleans up."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta

from app import jobs
from app.cleanup import clean
from app.database import DATABASE_AWAY
from app.outbox import requeue_unclaimed
from app.service import Service

_log = logging.getLogger(__name__)


def run_relay(service: Service, stopping: threading.Event) -> None:
    settings = service.settings
    # At first what is queued is announced: a broker that was started with this process knows of nothing.
    after = timedelta(0)
    # A worker that could not write for a while must have had its turn, or its lease must have ended, before a file is
    # taken for one that nobody names.
    in_touch_since = last_cleanup = time.monotonic()
    while True:
        try:
            relay_once(service, republish_after=after)
            after = timedelta(seconds=settings.republish_seconds)
            now = time.monotonic()
            if now - last_cleanup >= settings.cleanup_seconds and now - in_touch_since >= 2 * settings.lease_seconds:
                last_cleanup = now
                clean(service)
        except DATABASE_AWAY as error:
            in_touch_since = time.monotonic()
            _log.warning("the database cannot be used (%s); trying again", error.orig)
        except Exception:  # noqa: BLE001 - logged; whatever one round meets, the next one must come
            _log.exception("a round of the relay failed; trying again")
        if stopping.wait(settings.relay_seconds):
            return


def relay_once(service: Service, *, republish_after: timedelta) -> None:
    settings = service.settings
    backoff = timedelta(seconds=settings.lost_backoff_seconds)
    with service.database.writing() as session:
        for job in jobs.reap(session, max_lost_leases=settings.max_lost_leases, backoff=backoff):
            _log.warning("job %d: its worker was lost; the job is now %s", job.id, job.state)
        requeue_unclaimed(session, after=republish_after)
    service.publish_pending()
