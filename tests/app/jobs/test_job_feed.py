"""What those see who follow a job."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import event

from app import jobs
from app.db.database import Database
from app.db.tables import JobEvent
from app.jobs import job_feed
from app.jobs.job_feed import JobFeeds
from gkl.outcome import Progress
from tests.app.jobs.test_jobs import send, take

Seen = list[int | float]


async def follow(feeds: JobFeeds, job_id: int, seen: int = 0, seconds: float = 20) -> Seen:
    """Ids of events, and fractions of progress between them."""
    found: Seen = []
    async for news in feeds.follow(job_id, seen, until=time.monotonic() + seconds):
        found.append(news.id if isinstance(news, JobEvent) else news["fraction"])
    return found


def ids(database: Database, job_id: int) -> Seen:
    with database.reading() as session:
        return [event.id for event in jobs.events_after(session, job_id, 0)]


def test_many_followers_cost_one_look_and_each_sees_everything(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_feed, "_LOOK_SECONDS", 0.05)
    # So few that most of what there is has left it again.
    monkeypatch.setattr(job_feed, "_KEPT_EVENTS", 3)
    job_id = send(database)
    claim = take(database)
    statements = Counter[str]()

    def count(*arguments: Any) -> None:
        statements[str(arguments[2])] += 1

    event.listen(database.engine, "before_cursor_execute", count)

    async def scene() -> list[Seen]:
        feeds = JobFeeds(database)
        tasks = [asyncio.create_task(follow(feeds, job_id, seen)) for seen in (0, 1, 10**6) for _ in range(10)]
        await asyncio.sleep(1)
        idle = sum(statements.values())
        assert idle < 20 * 6 + 100, "each look is a few statements, however many wait for it"
        await asyncio.to_thread(run)
        return list(await asyncio.gather(*tasks))

    def run() -> None:
        for number in range(8):
            with database.writing() as session:
                jobs.record_event(session, claim, Progress(stage="train", fraction=number / 8, detail=""))
        with database.writing() as session:
            jobs.end_cancelled(session, claim)

    found = asyncio.run(scene())
    everything = ids(database, job_id)
    assert all(seen == everything for seen in found[:10])
    assert all(seen == everything[1:] for seen in found[10:20])
    assert all(seen == [] for seen in found[20:])
    assert asyncio.run(follow(JobFeeds(database), job_id)) == everything, "also when it is over"


def test_it_ends_in_time_and_where_the_job_is_gone(database: Database) -> None:
    job_id = send(database)
    began = time.monotonic()
    assert asyncio.run(follow(JobFeeds(database), job_id, seconds=0.3)) == ids(database, job_id)
    assert asyncio.run(follow(JobFeeds(database), 999)) == []
    assert time.monotonic() - began < 5
