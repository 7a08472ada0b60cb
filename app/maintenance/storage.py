"""Disk usage by kind, and when each kind is removed: for `gklbench storage`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from app.core.settings import Settings
from app.db.tables import FileKind, Job, JobEvent, JobFile, JobLogPart, PartialUpload, Upload
from app.jobs import retention
from app.weights import uploads

_TITLES = {
    FileKind.RESUME: "checkpoints of trainings that have not ended",
    FileKind.WEIGHTS: "trained weights with a board entry, or being evaluated",
    FileKind.BLOCK: "finished parts of evaluations that have not ended",
    FileKind.CERTIFICATE: "certificates",
    FileKind.EXAMPLES: "examples that are being checked",
    FileKind.CONVERTED: "converted weights",
}
_WHILE = {
    FileKind.RESUME: "with the job's end",
    FileKind.BLOCK: "with the job's end",
    FileKind.EXAMPLES: "with the job's end",
    FileKind.CONVERTED: "with the file that was sent",
}
_FOLDERS = ("artifacts", "incoming", "uploads", "fetched", "runs", "datasets", "models")


@dataclass(frozen=True)
class Share:
    """A kind of stored data."""

    title: str
    number: int
    size_bytes: int | None
    """None if only their number is known."""
    goes: str
    """When it is removed, in words; empty if it stays."""


def folders(settings: Settings) -> list[tuple[str, int]]:
    """The names of the existing parts of the data directory, with the total size of their files in bytes."""
    root = settings.data_dir.resolve()
    found = [(name, _size(root / name)) for name in _FOLDERS if (root / name).is_dir()]
    others = sum(path.stat().st_size for path in root.glob("*") if path.is_file())
    others += sum(_size(path) for path in root.glob("*") if path.is_dir() and path.name not in _FOLDERS)
    return [*found, ("database, logs and others", others)]


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() and not path.is_symlink() else 0
        except FileNotFoundError:
            continue
    return total


def shares(session: Session, settings: Settings) -> list[Share]:
    """Stored data by kind. A file that several jobs name counts for each of them, although it is stored once."""
    return [
        *_going_files(session, settings),
        *_other_files(session),
        *_sent(session, settings),
        *_rows(session, settings),
    ]


def _going_files(session: Session, settings: Settings) -> Iterator[Share]:
    for rule in retention.FILE_RULES:
        columns = (func.count(), func.coalesce(func.sum(JobFile.size_bytes), 0), func.min(rule.since))
        number, size_bytes, first = session.execute(rule.files(*columns)).one()
        yield Share(rule.title, number, int(size_bytes), _goes(first, rule.days(settings), rule.setting))


def _other_files(session: Session) -> Iterator[Share]:
    going = or_(*(JobFile.id.in_(rule.files(JobFile.id)) for rule in retention.FILE_RULES))
    size = func.sum(JobFile.size_bytes)
    kinds = select(JobFile.kind, func.count(), size).where(~going).group_by(JobFile.kind).order_by(size.desc())
    for kind, number, size_bytes in session.execute(kinds):
        yield Share(_TITLES[kind], number, int(size_bytes), _WHILE.get(kind, ""))


def _sent(session: Session, settings: Settings) -> Iterator[Share]:
    rows = session.execute(select(Upload.sha256, Upload.size_bytes, Upload.created_at)).all()
    needed = uploads.needed(session, [row.sha256 for row in rows])
    idle = [row for row in rows if row.sha256 not in needed]
    days, setting = settings.upload_retention_days, "GKLBENCH_UPLOAD_RETENTION_DAYS"
    first = min((row.created_at for row in idle), default=None)
    yield Share(
        "sent weights that a job or a model needs",
        len(rows) - len(idle),
        sum(row.size_bytes for row in rows if row.sha256 in needed),
        "",
    )
    yield Share(
        "sent weights that nothing needs", len(idle), sum(row.size_bytes for row in idle), _goes(first, days, setting)
    )
    begun = select(func.count(), func.sum(PartialUpload.size_bytes), func.min(PartialUpload.touched_at))
    number, size_bytes, first = session.execute(begun.where(PartialUpload.sha256.is_(None))).one()
    yield Share("weights being sent, as announced", number, int(size_bytes or 0), _goes(first, days, setting))


def _rows(session: Session, settings: Settings) -> Iterator[Share]:
    """Data in the database."""
    size = func.sum(func.length(JobLogPart.data))
    number, size_bytes = session.execute(select(func.count(JobLogPart.job_id.distinct()), size)).one()
    yield Share(
        "logs of jobs", number, int(size_bytes or 0), f"{settings.log_retention_days:g} days after the job's end"
    )
    number = session.scalar(select(func.count()).select_from(JobEvent)) or 0
    yield Share("events of jobs", number, None, f"{settings.event_retention_days:g} days after the job's end")
    old = select(func.count(), func.min(Job.finished_at)).where(retention.without_result())
    number, first = session.execute(old).one()
    yield Share(
        "ended jobs without a result",
        number,
        None,
        _goes(first, settings.job_retention_days, "GKLBENCH_JOB_RETENTION_DAYS"),
    )


def _goes(first: datetime | None, days: float, setting: str) -> str:
    if first is None:
        return f"after {days:g} days ({setting})"
    return f"from {first + timedelta(days=days):%Y-%m-%d} on ({setting})"
