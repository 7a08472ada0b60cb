"""From committed rows to messages: the wake-ups that workers are owed.

A job and its outbox row are committed together; publishing comes after. Whatever is not published then, or
is published and lost, the relay publishes later: a broker outage delays jobs and loses none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.database import Database, database_now
from app.tables import Job, JobState, OutboxMessage

_log = logging.getLogger(__name__)

Publish = Callable[[int], None]
"""Sends the wake-up for a job id; raises if the broker cannot be reached."""


def enqueue(session: Session, job: Job) -> None:
    """Owe the workers a wake-up for this job, from the moment the transaction commits."""
    session.execute(delete(OutboxMessage).where(OutboxMessage.job_id == job.id))
    session.add(OutboxMessage(job_id=job.id, created_at=database_now(session)))


def publish_pending(database: Database, publish: Publish, *, limit: int = 100) -> int:
    """Publish what is owed, oldest first; returns how many. Stops quietly if the broker is away.

    A message that is published and not marked, because this process died in between, goes out twice: a
    worker that finds no queued job does nothing.
    """
    with database.reading() as session:
        owed = session.execute(
            select(OutboxMessage.id, OutboxMessage.job_id)
            .where(OutboxMessage.published_at.is_(None))
            .order_by(OutboxMessage.id)
            .limit(limit)
        ).all()
    published: list[int] = []
    for message_id, job_id in owed:
        try:
            publish(job_id)
        except OSError as error:
            _log.warning("the broker cannot be reached (%s); %d messages wait", error, len(owed) - len(published))
            break
        published.append(message_id)
    if published:
        with database.writing() as session:
            now = database_now(session)
            for message in session.scalars(select(OutboxMessage).where(OutboxMessage.id.in_(published))):
                message.published_at = now
    return len(published)


def requeue_unclaimed(session: Session, *, after: timedelta) -> int:
    """Owe another wake-up for jobs that are still queued so long after their last one; returns how many.

    Also forgets the messages of jobs that are past queueing.
    """
    queued = select(Job.id).where(Job.state == JobState.QUEUED)
    session.execute(delete(OutboxMessage).where(OutboxMessage.job_id.not_in(queued)))
    forgotten = session.scalars(
        select(OutboxMessage).where(OutboxMessage.published_at <= database_now(session) - after)
    ).all()
    for message in forgotten:
        message.published_at = None
    return len(forgotten)
