"""The Celery worker and its options, with the reason for each option."""

from __future__ import annotations

import threading
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_shutting_down

from app.core.settings import Settings
from app.db.database import Database
from app.jobs.broker import make_celery
from app.store import open_store
from worker.presence import announce, worker_name
from worker.tasks import Worker


def make_worker(settings: Settings) -> Worker:
    """Make this process's only worker, without connecting to anything."""
    return Worker(
        settings=settings,
        database=Database(settings.effective_database_url),
        store=open_store(settings),
        name=worker_name(),
        stopping=threading.Event(),
    )


def make_worker_app(worker: Worker) -> Celery:
    """Make the Celery application with the task that wakes the worker, without connecting to the broker."""
    celery = make_celery(worker.settings)
    celery.conf.update(
        # A longer socket timeout than in the API, where a request waits: a worker only waits for messages.
        broker_transport_options={"socket_connect_timeout": 3, "socket_timeout": 30},
        # Acknowledge a message before working on it. Otherwise a Redis-protocol broker would deliver it to a second
        # worker after the visibility timeout, while the first worker still runs the job.
        task_acks_late=False,
        # Do not deliver a message again when its worker is lost: a run that the out-of-memory killer ends would come
        # back for ever. The relay queues a lost worker's job again, and only a limited number of times.
        task_reject_on_worker_lost=False,
        # Take a message only when the worker is idle: other workers cannot receive a message that waits here.
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        # One job at a time, since a worker has one GPU. A thread is enough, because the job itself is a process. The
        # prefork pool's children are daemonic, so their jobs could not start data-loading processes; the solo pool
        # would read neither messages nor signals while a job runs.
        worker_pool="threads",
        worker_concurrency=1,
        # The supervisor enforces all time limits. Celery's would raise exceptions in a thread.
        task_time_limit=None,
        task_soft_time_limit=None,
        # A job continues while the broker is down, since it does not use the broker.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # A broker may be down for minutes or a night; meanwhile jobs are safe in the database.
        broker_connection_retry=True,
        worker_hijack_root_logger=False,
        # Nothing listens to Celery's own events: the service reads the worker's row in the database.
        worker_send_task_events=False,
    )

    def on_shutdown(**_: Any) -> None:
        worker.stopping.set()

    # weak=False: by default a signal would hold this local function weakly, and it would be garbage-collected.
    worker_shutting_down.connect(on_shutdown, weak=False)
    setup_logging.connect(_keep_our_logging, weak=False)
    worker.register(celery)
    return celery


def _keep_our_logging(**_: Any) -> None:
    """Does nothing; while it is connected to `setup_logging`, Celery keeps the logging that the command has set up."""


def run_worker(settings: Settings) -> None:
    """Run jobs until the process is asked to stop; a running job then saves a checkpoint and is queued again."""
    worker = make_worker(settings)
    celery = make_worker_app(worker)
    ended = threading.Event()
    presence = threading.Thread(
        target=announce,
        args=(settings, worker.database, worker.store, worker.name),
        kwargs={"stopping": worker.stopping, "ended": ended},
    )
    polling = threading.Thread(target=worker.poll)
    presence.start()
    polling.start()
    try:
        # --quiet: without Celery's banner on standard output, which is not a log line.
        celery.worker_main(["--quiet", "worker", "--without-gossip", "--without-mingle", "--without-heartbeat"])
    finally:
        # Celery has waited for its own thread; a job may still run in the polling thread.
        worker.stopping.set()
        polling.join()
        ended.set()
        presence.join()
