"""The outbox: wake-up messages that are stored with the job and published after the commit.

A job and its outbox row are committed together; publishing comes after. The relay later publishes each message that
was not published or was lost: a broker outage delays jobs and loses none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, delete, exists, select, update
from sqlalchemy.orm import Session

from app.db.database import Database, database_now
from app.db.tables import Job, OutboxMessage
from gkl.answers import JobState

_log = logging.getLogger(__name__)

Publish = Callable[[int], None]
"""Sends the wake-up for a job id; raises if the broker cannot be reached."""

_BATCH = 100
# A woken worker claims jobs until none is due: a few messages are enough for a queue of any length.
_ANNOUNCED_AGAIN = 20


def enqueue(session: Session, job: Job) -> None:
    """Add a wake-up message for this job, to be published once the transaction has committed and the job is due."""
    assert job.due_at is not None
    withdraw(session, job)
    session.add(OutboxMessage(job_id=job.id, created_at=database_now(session), due_at=job.due_at))


def withdraw(session: Session, job: Job) -> None:
    """Remove this job's wake-up message."""
    session.execute(delete(OutboxMessage).where(OutboxMessage.job_id == job.id))


def publish_pending(database: Database, publish: Publish, *, job_ids: Sequence[int] | None = None) -> int:
    """Publish due messages, oldest first, optionally only those of some jobs. Returns how many were published.

    Logs a warning and stops if the broker is down. If this process dies after publishing a message and before marking
    it, the message is sent twice: a worker that finds no queued job does nothing.
    """
    total = 0
    while True:
        with database.reading() as session:
            query = (
                select(OutboxMessage.id, OutboxMessage.job_id)
                .where(OutboxMessage.published_at.is_(None), OutboxMessage.due_at <= database_now(session))
                .order_by(OutboxMessage.id)
                .limit(_BATCH)
            )
            of_jobs = query if job_ids is None else query.where(OutboxMessage.job_id.in_(job_ids))
            owed = session.execute(of_jobs).all()
        published: list[int] = []
        for message_id, owed_job_id in owed:
            try:
                publish(owed_job_id)
            except OSError as error:
                _log.warning("the broker cannot be reached (%s); messages wait", error)
                break
            published.append(message_id)
        if published:
            with database.writing() as session:
                now = database_now(session)
                session.execute(update(OutboxMessage).where(OutboxMessage.id.in_(published)).values(published_at=now))
        total += len(published)
        if len(published) < _BATCH:
            return total


def requeue_unclaimed(session: Session, *, after: timedelta) -> int:
    """Mark messages for publishing again if their jobs are still queued `after` the last time. Returns how many.

    In a long queue only the oldest are published again: the workers that they wake claim the others too. Also removes
    the messages of jobs that are no longer queued.
    """
    is_queued = exists().where(Job.id == OutboxMessage.job_id, Job.state == JobState.QUEUED)
    session.execute(delete(OutboxMessage).where(~is_queued))
    oldest = (
        select(OutboxMessage.id)
        .where(OutboxMessage.published_at <= database_now(session) - after)
        .order_by(OutboxMessage.published_at, OutboxMessage.id)
        .limit(_ANNOUNCED_AGAIN)
        # A claim that locks a message is taking its job and removes the message.
        .with_for_update(skip_locked=True)
    )
    # Selected first: as a subquery of the update, PostgreSQL may run it for each row, with other rows each time.
    chosen = session.scalars(oldest).all()
    again = update(OutboxMessage).where(OutboxMessage.id.in_(chosen)).values(published_at=None)
    return cast("CursorResult[Any]", session.execute(again)).rowcount
