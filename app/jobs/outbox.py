"""From committed rows to messages: the wake-ups that workers are owed.

A job and its outbox row are committed together; publishing comes after. Whatever is not published then, or
is published and lost, the relay publishes later: a broker outage delays jobs and loses none.
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
# A woken worker goes on until nothing is due: a few messages wake as many workers as there are for any queue.
_ANNOUNCED_AGAIN = 20


def enqueue(session: Session, job: Job) -> None:
    """Owe the workers a wake-up for this job, from the moment the transaction commits and the job is due."""
    assert job.due_at is not None
    withdraw(session, job)
    session.add(OutboxMessage(job_id=job.id, created_at=database_now(session), due_at=job.due_at))


def withdraw(session: Session, job: Job) -> None:
    """Owe no wake-up for this job any more."""
    session.execute(delete(OutboxMessage).where(OutboxMessage.job_id == job.id))


def publish_pending(database: Database, publish: Publish, *, job_ids: Sequence[int] | None = None) -> int:
    """Publish what is owed and due, oldest first, or only what is owed for some jobs; returns how many.

    Stops quietly if the broker is away. A message that is published and not marked, because this process died in
    between, goes out twice: a worker that finds no queued job does nothing.
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
    """Owe another wake-up for jobs that are still queued so long after their last one; returns how many.

    Of a long queue only the oldest are announced: the workers that they wake take the others too. Also forgets the
    messages of jobs that are past queueing.
    """
    is_queued = exists().where(Job.id == OutboxMessage.job_id, Job.state == JobState.QUEUED)
    session.execute(delete(OutboxMessage).where(~is_queued))
    oldest = (
        select(OutboxMessage.id)
        .where(OutboxMessage.published_at <= database_now(session) - after)
        .order_by(OutboxMessage.published_at, OutboxMessage.id)
        .limit(_ANNOUNCED_AGAIN)
        # A claim that holds one takes the job, and the message with it.
        .with_for_update(skip_locked=True)
    )
    # Read first: within the update PostgreSQL may run the choice once for each row, and come to others each time.
    chosen = session.scalars(oldest).all()
    again = update(OutboxMessage).where(OutboxMessage.id.in_(chosen)).values(published_at=None)
    return cast("CursorResult[Any]", session.execute(again)).rowcount
