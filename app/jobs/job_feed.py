"""Events of the jobs that clients follow: one database query per job and interval, however many clients follow it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi.concurrency import run_in_threadpool

from app import jobs
from app.db.database import DATABASE_AWAY, Database
from app.db.tables import JobEvent

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_KEPT_EVENTS = 1000


@dataclass
class _Feed:
    """The feed of one job, while a client follows it."""

    followers: int = 0
    from_id: int = 0
    """All events with a larger id are among `events`."""
    events: deque[JobEvent] = field(default_factory=deque)
    progress: dict[str, Any] | None = None
    has_ended: bool = False
    changes: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task[None] | None = None

    async def change(self, since: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.changes != since)

    async def notify(self) -> None:
        self.changes += 1
        async with self.changed:
            self.changed.notify_all()


class JobFeeds:
    """The feeds of one API process; used in its event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._feeds: dict[int, _Feed] = {}

    async def follow(self, job_id: int, seen: int, *, until: float) -> AsyncGenerator[JobEvent | dict[str, Any]]:
        """Yield the events after the one with id `seen`, in order, and between them the progress when it has changed.

        Ends after the job's last event, or at the moment `until` of the monotonic clock. Waits while the database is
        down.
        """
        sent: dict[str, Any] | None = None
        async with self._feed(job_id) as feed:
            while time.monotonic() < until:
                changes = feed.changes
                if seen < feed.from_id:
                    # These events are older than the ones in memory: read them once for each new follower.
                    events = await self._patiently(partial(self._read, job_id, seen))
                    events = [event for event in events if event.id <= feed.from_id]
                    if not events:
                        seen = feed.from_id
                        continue
                else:
                    events = [event for event in feed.events if event.id > seen]
                for event in events:
                    seen = event.id
                    yield event
                if feed.progress is not None and feed.progress != sent and not feed.has_ended:
                    sent = feed.progress
                    yield sent
                if events:
                    continue
                if feed.has_ended:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(feed.change(since=changes), max(0, until - time.monotonic()))

    @asynccontextmanager
    async def _feed(self, job_id: int) -> AsyncIterator[_Feed]:
        feed = self._feeds.get(job_id)
        if feed is None:
            feed = self._feeds[job_id] = _Feed()
            feed.task = asyncio.create_task(self._run(job_id, feed))
        feed.followers += 1
        try:
            yield feed
        finally:
            feed.followers -= 1
            if feed.followers == 0:
                assert feed.task is not None
                feed.task.cancel()
                self._feeds.pop(job_id, None)

    async def _run(self, job_id: int, feed: _Feed) -> None:
        try:
            await self._poll(job_id, feed)
        except Exception:  # noqa: BLE001 - logged; a follower asks again and then gets the error
            _log.exception("job %d cannot be followed", job_id)
            feed.has_ended = True
            await feed.notify()

    async def _poll(self, job_id: int, feed: _Feed) -> None:
        while not feed.has_ended:
            after = feed.events[-1].id if feed.events else feed.from_id
            has_ended, progress, events = await self._patiently(partial(self._look, job_id, after))
            if events or progress != feed.progress or has_ended:
                feed.events.extend(events)
                while len(feed.events) > _KEPT_EVENTS:
                    feed.from_id = feed.events.popleft().id
                # The feed ends only after the last events are in memory.
                feed.progress, feed.has_ended = progress, has_ended and not events
                await feed.notify()
            if not events:
                await asyncio.sleep(_LOOK_SECONDS)

    async def _patiently(self, read: Callable[[], Any]) -> Any:
        while True:
            try:
                return await run_in_threadpool(read)
            except DATABASE_AWAY as error:
                _log.warning("the database cannot be used (%s); followers wait", error.orig)
                await asyncio.sleep(1)

    def _read(self, job_id: int, seen: int) -> list[JobEvent]:
        with self._database.reading() as session:
            return jobs.events_after(session, job_id, seen)

    def _look(self, job_id: int, seen: int) -> tuple[bool, dict[str, Any] | None, list[JobEvent]]:
        with self._database.reading() as session:
            # Read the job first: if it has ended, all its events are already stored.
            job = jobs.get(session, job_id)
            return job.state.is_final, jobs.progress(job), jobs.events_after(session, job_id, seen)
