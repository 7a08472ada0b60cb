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
    while not stopping.wait(service.settings.relay_seconds):
        try:
            relay_once(service)
        except OperationalError as error:
            _log.warning("the database cannot be used (%s); trying again", error.orig)


def relay_once(service: Service) -> None:
    settings = service.settings
    with service.database.writing() as session:
        for job in jobs.reap(session, max_lost_leases=settings.max_lost_leases):
            _log.warning("job %d: its worker %s was lost; the job is now %s", job.id, job.worker, job.state)
        requeue_unclaimed(session, after=timedelta(seconds=settings.republish_seconds))
    service.publish_pending()
