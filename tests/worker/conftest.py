"""A service with a worker, in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from app.core.settings import Settings
from app.db.database import Database
from app.store import ArtifactStore
from tests.servers import served
from worker.tasks import Worker


@pytest.fixture
def url(settings: Settings, database: Database, store: ArtifactStore) -> Iterator[str]:
    """A service, and a worker that takes what is due."""
    stopping = threading.Event()
    quick = settings.model_copy(update={"heartbeat_seconds": 0.3, "checkpoint_seconds": 0.0})
    worker = Worker(quick, database, store, name="test", stopping=stopping)

    def work() -> None:
        while not stopping.wait(0.1):
            worker.run_all_due()

    with served(settings) as url:
        thread = threading.Thread(target=work)
        thread.start()
        yield url
        stopping.set()
        thread.join(timeout=60)
