"""The Celery worker and its options, each with its reason."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_shutting_down

from app.artifacts import ArtifactStore
from app.broker import make_celery, publisher
from app.database import Database
from app.settings import Settings
from worker.tasks import Worker


def make_worker_app(settings: Settings) -> Celery:
    """Celery with the task that wakes this process's one worker. Does not connect."""
    celery = make_celery(settings)
    celery.conf.update(
        # Acknowledge a message before it is worked on. A Redis-protocol broker delivers a message that is not
        # acknowledged again after its visibility timeout, to a second worker, while the first still runs.
        task_acks_late=False,
        # Take a message only when there is room for it: one that waits behind a job of hours is lost to others.
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        # One GPU, one job. A thread, because the job itself is a process of its own: prefork's children are
        # daemonic and their jobs could have no data-loading processes.
        worker_pool="threads",
        worker_concurrency=1,
        # The supervisor owns every limit; Celery's are exceptions thrown into a thread.
        task_time_limit=None,
        task_soft_time_limit=None,
        # Prefetched messages are not held, so there is none to give back when the connection drops.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
    )
    stopping = threading.Event()
    worker = Worker(
        settings=settings,
        database=Database(settings.effective_database_url),
        store=ArtifactStore(settings.data_dir),
        publish=publisher(celery),
        name=f"{socket.gethostname()}/{os.getpid()}",
        stopping=stopping,
    )

    def on_shutdown(**_: Any) -> None:
        stopping.set()

    # Kept alive by the instance: signals hold receivers weakly.
    worker_shutting_down.connect(on_shutdown, weak=False)
    setup_logging.connect(_keep_our_logging, weak=False)
    worker.register(celery)
    return celery


def _keep_our_logging(**_: Any) -> None:
    """Connected so that Celery leaves the logging alone that the command has set up."""


def run_worker(settings: Settings) -> None:
    """Work until told to stop. A running job is then asked to checkpoint and is handed back."""
    make_worker_app(settings).worker_main(["worker", "--without-gossip", "--without-mingle", "--without-heartbeat"])
