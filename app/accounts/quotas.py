"""Quotas: how much of the service a submitter may use, and has used. A token carries the limits
(`app.accounts.tokens.Limits`).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.accounts import tokens
from app.core.errors import TooLarge, TooMany
from app.core.formatting import count
from app.db.database import database_now, insert_into
from app.db.tables import Job, JobFile, PartialUpload, Submitter, Upload, UploadSender, WorkerTime
from gkl.answers import HELD, JobKind, JobState

_ASK_AGAIN_SECONDS = 60
_REMEMBERED = timedelta(days=400)


@dataclass(frozen=True)
class Used:
    """What a submitter uses now, in the units of `app.accounts.tokens.Limits`."""

    queued_jobs: int
    running_jobs: int
    gpu_hours_today: float
    upload_bytes: int


def used(session: Session, submitter: str) -> Used:
    return Used(
        queued_jobs=_queued(session, submitter),
        running_jobs=_running(session, submitter),
        gpu_hours_today=seconds_today(session, submitter, database_now(session)) / 3600,
        upload_bytes=bytes_kept(session, submitter),
    )


def _queued(session: Session, submitter: str) -> int:
    """Without shards: the evaluation that they belong to is counted."""
    waiting = select(func.count()).where(
        Job.submitter == submitter, Job.state == JobState.QUEUED, Job.kind != JobKind.SHARD
    )
    return session.scalar(waiting) or 0


def _running(session: Session, submitter: str) -> int:
    return session.scalar(select(func.count()).where(Job.submitter == submitter, Job.state.in_(HELD))) or 0


def check_room_for_job(session: Session, submitter: str) -> None:
    """Check a submitter's quotas before a job is queued. Parallel requests of one submitter wait for each other.

    Raises:
        TooMany: the limit of queued jobs, of stored bytes or of hours a day is reached.
    """
    limits = tokens.limits_of(session, [submitter]).get(submitter, _NONE)
    if limits.queued_jobs is not None:
        lock_submitter(session, submitter)
        waiting = _queued(session, submitter)
        if waiting >= limits.queued_jobs:
            raise TooMany(
                f"{submitter} has {count(waiting, 'queued job')}, the limit; wait until some begin, or cancel some",
                retry_after_seconds=_ASK_AGAIN_SECONDS,
            )
    if limits.upload_bytes is not None and (kept := bytes_kept(session, submitter)) >= limits.upload_bytes:
        raise TooMany(
            f"{submitter} has {kept} bytes stored, and the limit is {limits.upload_bytes}; before another job, remove "
            "weights or jobs that you no longer need: DELETE /api/v1/weights/<sha256>, DELETE /api/v1/jobs/<number>",
            retry_after_seconds=_ASK_AGAIN_SECONDS,
        )
    if _is_day_used_up(session, submitter, limits, database_now(session)):
        raise TooMany(
            f"the jobs of {submitter} have used their {limits.gpu_hours_per_day:g} hours on workers today; the quota "
            "resets at 00:00 UTC",
            retry_after_seconds=_seconds_left_of_day(database_now(session)),
        )


def room_for_upload(session: Session, submitter: str) -> int | None:
    """Bytes that the submitter may still store; None if there is no limit."""
    limit = tokens.limits_of(session, [submitter]).get(submitter, _NONE).upload_bytes
    return None if limit is None else limit - bytes_kept(session, submitter)


def check_upload_fits(session: Session, submitter: str, size_bytes: int) -> None:
    """Check that the submitter may store this many more bytes.

    Raises:
        TooLarge: they exceed the limit by themselves.
        TooMany: they exceed it together with what is stored.
    """
    limit = tokens.limits_of(session, [submitter]).get(submitter, _NONE).upload_bytes
    if limit is None:
        return
    if size_bytes > limit:
        raise TooLarge(f"{submitter} may store {limit} bytes, and this upload has {size_bytes}")
    room = limit - bytes_kept(session, submitter)
    if size_bytes > room:
        raise TooMany(
            f"{submitter} may store {limit} bytes, of which {max(0, room)} are left; remove weights or jobs that "
            "you no longer need: DELETE /api/v1/weights/<sha256>, DELETE /api/v1/jobs/<number>",
            retry_after_seconds=_ASK_AGAIN_SECONDS,
        )


def bytes_kept(session: Session, submitter: str) -> int:
    """Stored bytes: complete and partial uploads, and the files of the submitter's jobs."""
    sent = (
        select(func.sum(Upload.size_bytes))
        .join(UploadSender, UploadSender.sha256 == Upload.sha256)
        .where(UploadSender.submitter == submitter)
    )
    begun = select(func.sum(PartialUpload.size_bytes)).where(
        PartialUpload.submitter == submitter, PartialUpload.sha256.is_(None)
    )
    left = select(func.sum(JobFile.size_bytes)).join(Job, Job.id == JobFile.job_id).where(Job.submitter == submitter)
    return sum(int(session.scalar(query) or 0) for query in (sent, begun, left))


def kept_by_all(session: Session) -> dict[str, int]:
    """`bytes_kept` by submitter, the largest first."""
    queries = (
        select(UploadSender.submitter, func.sum(Upload.size_bytes)).join(Upload, Upload.sha256 == UploadSender.sha256),
        select(PartialUpload.submitter, func.sum(PartialUpload.size_bytes)).where(PartialUpload.sha256.is_(None)),
        select(Job.submitter, func.sum(JobFile.size_bytes)).join(JobFile, JobFile.job_id == Job.id),
    )
    found: Counter[str] = Counter()
    for query in queries:
        found.update({name: int(size) for name, size in session.execute(query.group_by(query.selected_columns[0]))})
    return dict(found.most_common())


def lock_submitter(session: Session, submitter: str) -> None:
    """Lock the submitter's row: their other requests wait until this transaction ends."""
    register_submitter(session, submitter)
    session.execute(select(Submitter).where(Submitter.name == submitter).with_for_update())


def register_submitter(session: Session, submitter: str) -> None:
    """Add a submitter to the rotation in which workers claim jobs."""
    session.execute(insert_into(session, Submitter).values(name=submitter).on_conflict_do_nothing())


def may_run_another(session: Session, submitter: str, limits: tokens.Limits, now: datetime) -> bool:
    """Whether a worker may claim another job of this submitter. Locks the submitter's row if their running jobs are
    limited."""
    if limits.running_jobs is not None:
        row = select(Submitter).where(Submitter.name == submitter).with_for_update(skip_locked=True)
        if session.scalars(row).first() is None:
            return False
        if _running(session, submitter) >= limits.running_jobs:
            return False
    return not _is_day_used_up(session, submitter, limits, now)


def why_waiting(session: Session, job: Job) -> str | None:
    """The limit that keeps a queued job waiting, in words; None if no limit does."""
    limits = tokens.limits_of(session, [job.submitter]).get(job.submitter, _NONE)
    if job.state is not JobState.QUEUED:
        return None
    if _is_day_used_up(session, job.submitter, limits, database_now(session)):
        return f"its submitter has used {limits.gpu_hours_per_day:g} hours on workers today; it continues at 00:00 UTC"
    if limits.running_jobs is not None:
        held = _running(session, job.submitter)
        if held >= limits.running_jobs:
            return f"its submitter has {count(held, 'running job')}, the limit"
    return None


# --- time on workers ---------------------------------------------------------------------------------------------


def note_worker_time(session: Session, submitter: str, start: datetime, end: datetime) -> None:
    """Add the time of an ended attempt, divided by days in UTC."""
    for day, seconds in _days(start, end):
        row = insert_into(session, WorkerTime).values(submitter=submitter, day=day, seconds=seconds)
        more = {"seconds": WorkerTime.seconds + row.excluded.seconds}
        session.execute(row.on_conflict_do_update(index_elements=["submitter", "day"], set_=more))


def forget_worker_time(session: Session) -> None:
    session.execute(delete(WorkerTime).where(WorkerTime.day < database_now(session).date() - _REMEMBERED))


def seconds_today(session: Session, submitter: str, now: datetime) -> float:
    """Seconds on workers since 00:00 UTC, including the running attempts."""
    day = now.astimezone(UTC).date()
    midnight = datetime.combine(day, time(), UTC)
    known = session.get(WorkerTime, (submitter, day), populate_existing=True)
    begun = session.scalars(
        select(Job.claimed_at).where(Job.submitter == submitter, Job.state.in_(HELD), Job.claimed_at.is_not(None))
    )
    going_on = sum((now - max(start, midnight)).total_seconds() for start in begun if start is not None)
    return (0.0 if known is None else known.seconds) + going_on


def _is_day_used_up(session: Session, submitter: str, limits: tokens.Limits, now: datetime) -> bool:
    hours = limits.gpu_hours_per_day
    return hours is not None and seconds_today(session, submitter, now) >= 3600 * hours


def _seconds_left_of_day(now: datetime) -> int:
    now = now.astimezone(UTC)
    tomorrow = datetime.combine(now.date() + timedelta(days=1), time(), UTC)
    return math.ceil((tomorrow - now).total_seconds())


def _days(start: datetime, end: datetime) -> list[tuple[date, float]]:
    """
    >>> _days(datetime(2026, 1, 1, 23, tzinfo=UTC), datetime(2026, 1, 2, 2, tzinfo=UTC))
    [(datetime.date(2026, 1, 1), 3600.0), (datetime.date(2026, 1, 2), 7200.0)]
    """
    parts = []
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    while start < end:
        until = min(end, datetime.combine(start.date() + timedelta(days=1), time(), UTC))
        parts.append((start.date(), (until - start).total_seconds()))
        start = until
    return parts


_NONE = tokens.Limits(None, None, None, None, None)
