"""The log of a job's runs: rows of bytes in the database, read by offset, with a bounded total size.

When the log would grow beyond the bound, its older half is dropped, and its first line then says how many bytes were.
Offsets count from the first byte ever written, so that a reader can continue where it was. The log is in the database
so that the API can show it without the disk of the worker that wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from app.db.database import Database
from app.db.tables import JobLogPart

_PART_BYTES = 16 * 1024
_PARTS_AT_ONCE = 16


def append(session: Session, job_id: int, text: bytes, *, max_bytes: int) -> None:
    """Append bytes to the log; drops the older half if it has grown beyond `max_bytes`.

    Only one transaction at a time may add to a job's log.
    """
    part_bytes = min(_PART_BYTES, max_bytes // 4)
    last = session.execute(
        select(JobLogPart.start, JobLogPart.data)
        .where(JobLogPart.job_id == job_id)
        .order_by(JobLogPart.start.desc())
        .limit(1)
    ).first()
    start = 0
    if last is not None:
        start = last.start + len(last.data)
        if len(last.data) < part_bytes:
            start, text = last.start, last.data + text
            session.execute(delete(JobLogPart).where(JobLogPart.job_id == job_id, JobLogPart.start == start))
    for part in _split(text, part_bytes):
        session.execute(insert(JobLogPart).values(job_id=job_id, start=start, data=part))
        start += len(part)
    if start - kept(session, job_id).start > max_bytes:
        older = JobLogPart.start < start - max_bytes // 2
        session.execute(delete(JobLogPart).where(JobLogPart.job_id == job_id, older))


def kept(session: Session, job_id: int) -> range:
    """The range of offsets whose bytes are stored."""
    first, last = session.execute(
        select(func.min(JobLogPart.start), func.max(JobLogPart.start)).where(JobLogPart.job_id == job_id)
    ).one()
    if last is None:
        return range(0)
    length = session.scalar(
        select(func.length(JobLogPart.data)).where(JobLogPart.job_id == job_id, JobLogPart.start == last)
    )
    return range(first, last + (length or 0))


def read(database: Database, job_id: int, offset: int, end: int) -> Iterator[bytes]:
    """Yield the bytes between two offsets; if the first ones were dropped, a line that says so comes first."""
    with database.reading() as session:
        first = kept(session, job_id).start
    if offset < first:
        yield b"--- the first %d bytes of this log were dropped ---\n" % first
        offset = first
    while offset < end:
        with database.reading() as session:
            parts = _parts_from(session, job_id, offset)
        if not parts:
            return
        for start, data in parts:
            # `start` is beyond `offset` only if those bytes were dropped meanwhile.
            yield data[max(0, offset - start) : max(0, end - start)]
            offset = start + len(data)


def tail(session: Session, job_id: int, max_bytes: int) -> str:
    """The last `max_bytes` of the log, from the start of a line."""
    there = kept(session, job_id)
    offset = max(there.start, there.stop - max_bytes)
    parts = session.execute(
        select(JobLogPart.start, JobLogPart.data)
        .where(JobLogPart.job_id == job_id, JobLogPart.start > offset - _PART_BYTES)
        .order_by(JobLogPart.start)
    )
    data = b"".join(data[max(0, offset - start) :] for start, data in parts)
    text = data.decode(errors="replace")
    return text if offset == there.start else text.split("\n", 1)[-1]


def _split(text: bytes, part_bytes: int) -> Iterator[bytes]:
    """Split after the end of a line, or within a line that is longer than a part."""
    while len(text) > part_bytes:
        end = text.rfind(b"\n", 0, part_bytes) + 1 or part_bytes
        yield text[:end]
        text = text[end:]
    if text:
        yield text


def _parts_from(session: Session, job_id: int, offset: int) -> list[tuple[int, bytes]]:
    holds_it = select(func.max(JobLogPart.start)).where(JobLogPart.job_id == job_id, JobLogPart.start <= offset)
    first = session.scalar(holds_it)
    rows = session.execute(
        select(JobLogPart.start, JobLogPart.data)
        .where(JobLogPart.job_id == job_id, JobLogPart.start >= (first or 0))
        .order_by(JobLogPart.start)
        .limit(_PARTS_AT_ONCE)
    )
    return [(start, data) for start, data in rows if start + len(data) > offset]
