"""The loop that keeps every job moving: publishes what is owed, and takes jobs from lost workers."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta

from sqlalchemy.exc import OperationalError

from app import jobs
from app.outbox import requeue_unclaimed
from app.service import Service

_log = logging.getLogger(__name__)


def run_relay(service: Service, stopping: threading.Event) -> None:
    # At first all that is queued is announced: a broker that was started with this process knows of nothing.
    after = timedelta(0)
    while True:
        try:
            relay_once(service, republish_after=after)
            after = timedelta(seconds=service.settings.republish_seconds)
        except OperationalError as error:
            _log.warning("the database cannot be used (%s); trying again", error.orig)
        if stopping.wait(service.settings.relay_seconds):
            return


def relay_once(service: Service, *, republish_after: timedelta) -> None:
    settings = service.settings
    with service.database.writing() as session:
        for job in jobs.reap(session, max_lost_leases=settings.max_lost_leases):
            _log.warning("job %d: its worker %s was lost; the job is now %s", job.id, job.worker, job.state)
        requeue_unclaimed(session, after=republish_after)
    service.publish_pending()
