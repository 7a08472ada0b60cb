"""The objects that request handlers share, made once per process."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.accounts.rate_limits import RateLimiter
from app.core.recent import Recent
from app.core.settings import Settings
from app.db.database import DATABASE_AWAY, Database
from app.jobs.broker import make_celery, publisher
from app.jobs.job_feed import JobFeeds
from app.jobs.outbox import Publish, publish_pending
from app.store import ArtifactStore, open_store

_log = logging.getLogger(__name__)

_HASTY_SECONDS = 7.0
# Charts of 16 views, and the bands of as many boards: at most about a megabyte each.
_CHARTS_KEPT = 32


@dataclass(frozen=True)
class Service:
    settings: Settings
    database: Database
    store: ArtifactStore
    publish: Publish
    rate_limiter: RateLimiter
    job_feeds: JobFeeds
    streams: Counter[str]
    """The number of this process's open event streams, by user."""
    charts: Recent
    """A cache of the boards' charts and rank bands, until the boards change."""

    @classmethod
    def from_settings(cls, settings: Settings, *, is_hasty: bool = False) -> Service:
        """Create the service's objects without connecting to anything.

        Args:
            settings: of the service.
            is_hasty: whether waits for the database and the store end within seconds, for processes that answer
                requests.
        """
        database = _open_database(settings, is_hasty)
        return cls(
            settings=settings,
            database=database,
            store=open_store(settings, is_hasty=is_hasty),
            publish=publisher(make_celery(settings)),
            rate_limiter=RateLimiter(settings),
            job_feeds=JobFeeds(database),
            streams=Counter(),
            charts=Recent(_CHARTS_KEPT),
        )

    def publish_pending(self, job_ids: Sequence[int] | None = None) -> None:
        """Publish due wake-up messages, optionally only those of some jobs. If this fails, the relay publishes them."""
        try:
            publish_pending(self.database, self.publish, job_ids=job_ids)
        except DATABASE_AWAY as error:
            _log.warning("the database cannot be used (%s); messages wait", error.orig)


def _open_database(settings: Settings, is_hasty: bool) -> Database:
    url = settings.effective_database_url
    return Database(url, patience_seconds=_HASTY_SECONDS) if is_hasty else Database(url)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]
