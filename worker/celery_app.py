"""The Celery worker and its options, each with its reason."""

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
    """This process's one worker. Does not connect."""
    return Worker(
        settings=settings,
        database=Database(settings.effective_database_url),
        store=open_store(settings),
        name=worker_name(),
        stopping=threading.Event(),
    )


def make_worker_app(worker: Worker) -> Celery:
    """Celery with the task that wakes the worker. Does not connect."""
    celery = make_celery(worker.settings)
    celery.conf.update(
        # A worker that waits for messages is in no hurry.
        broker_transport_options={"socket_connect_timeout": 3, "socket_timeout": 30},
        # Acknowledge a message before it is worked on. A Redis-protocol broker delivers a message that is not
        # acknowledged again after its visibility timeout, to a second worker, while the first still runs.
        task_acks_late=False,
        # Nor when the worker is lost: a run that the out-of-memory killer ends would be delivered again for ever.
        # The reaper counts attempts.
        task_reject_on_worker_lost=False,
        # Take a message only when there is room for it: one that waits behind a job of hours is lost to others.
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        # One GPU, one job. A thread, because the job itself is a process of its own: prefork's children are
        # daemonic and their jobs could have no data-loading processes; the solo pool would hear neither its
        # broker nor a signal while a job runs.
        worker_pool="threads",
        worker_concurrency=1,
        # The supervisor owns every limit; Celery's are exceptions thrown into a thread.
        task_time_limit=None,
        task_soft_time_limit=None,
        # A job goes on while the broker is away: nothing of it is there.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # A broker that was away comes back after minutes or a night; the job's row is there meanwhile.
        broker_connection_retry=True,
        worker_hijack_root_logger=False,
        # Nothing listens to Celery's own events: a worker's row in the database says all that is known about it.
        worker_send_task_events=False,
    )

    def on_shutdown(**_: Any) -> None:
        worker.stopping.set()

    # Kept alive by the instance: signals hold receivers weakly.
    worker_shutting_down.connect(on_shutdown, weak=False)
    setup_logging.connect(_keep_our_logging, weak=False)
    worker.register(celery)
    return celery


def _keep_our_logging(**_: Any) -> None:
    """Connected so that Celery leaves the logging alone that the command has set up."""


def run_worker(settings: Settings) -> None:
    """Work until the process is asked to stop. A running job then saves a checkpoint and goes back into the queue."""
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
        # Quiet: without a banner on standard output, which is no line of a log.
        celery.worker_main(["--quiet", "worker", "--without-gossip", "--without-mingle", "--without-heartbeat"])
    finally:
        # Celery has waited for its own thread; a job may be in the one that polls.
        worker.stopping.set()
        polling.join()
        ended.set()
        presence.join()
