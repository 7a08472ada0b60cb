"""Files that jobs left: points to resume from while they run, results when they are done."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import StoredFile
from app.database import database_now
from app.errors import NotFound, Unprocessable
from app.tables import FileKind, Job, JobFile, Model, Upload
from gkl.spec import PUBLISHED_WEIGHTS, EvaluateSpec

_KEEP = 2
_TO_GO_ON_FROM = (FileKind.RESUME, FileKind.BLOCK)


def add(session: Session, job_id: int, kind: FileKind, *, number: int, file: str, stored: StoredFile) -> list[str]:
    """Note a file, in place of an earlier one of this number; returns hashes that nothing refers to any more."""
    earlier = session.scalars(
        select(JobFile).where(JobFile.job_id == job_id, JobFile.kind == kind, JobFile.number == number)
    ).all()
    unused = _forget(session, list(earlier))
    session.add(
        JobFile(
            job_id=job_id,
            kind=kind,
            number=number,
            file=file,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
            created_at=database_now(session),
        )
    )
    session.flush()
    return [sha256 for sha256 in unused if sha256 != stored.sha256]


def to_go_on_from(session: Session, job_id: int) -> list[JobFile]:
    """What an earlier attempt left for the next, newest first."""
    return list(
        session.scalars(
            select(JobFile)
            .where(JobFile.job_id == job_id, JobFile.kind.in_(_TO_GO_ON_FROM))
            .order_by(JobFile.number.desc())
        )
    )


def forget_old_resume_points(session: Session, job_id: int) -> list[str]:
    """Drop all but a training's newest two; returns the hashes of files that nothing refers to any more."""
    points = [file for file in to_go_on_from(session, job_id) if file.kind is FileKind.RESUME]
    return _forget(session, points[_KEEP:])


def forget_resume_points_after(session: Session, job_id: int, epoch: int) -> list[str]:
    """Drop those of later epochs, which a run that fell back to an earlier one makes again."""
    later = [file for file in to_go_on_from(session, job_id) if file.kind is FileKind.RESUME and file.number > epoch]
    return _forget(session, later)


def forget_all_to_go_on_from(session: Session, job_id: int) -> list[str]:
    """Drop what only an unfinished job needs; returns the hashes of files that nothing refers to any more."""
    return _forget(session, to_go_on_from(session, job_id))


def _forget(session: Session, files: list[JobFile]) -> list[str]:
    for file in files:
        session.delete(file)
    session.flush()
    hashes = {file.sha256 for file in files}
    still_used = set(session.scalars(select(JobFile.sha256).where(JobFile.sha256.in_(hashes))))
    still_used |= set(session.scalars(select(Upload.sha256).where(Upload.sha256.in_(hashes))))
    return sorted(hashes - still_used)


def record_upload(session: Session, stored: StoredFile, weights_format: str) -> Upload:
    """Note weights that somebody sent; the same file again is the same upload."""
    known = session.get(Upload, stored.sha256)
    if known is not None:
        return known
    upload = Upload(
        sha256=stored.sha256,
        format=weights_format,
        size_bytes=stored.size_bytes,
        created_at=database_now(session),
    )
    session.add(upload)
    session.flush()
    return upload


def upload(session: Session, sha256: str) -> Upload:
    found = session.get(Upload, sha256)
    if found is None:
        raise NotFound(f"no weights with sha256 {sha256} were sent here")
    return found


def check_weights(session: Session, spec: EvaluateSpec) -> None:
    """
    Raises:
        Unprocessable: the spec names weights that are not here, or that are of another network.
    """
    if spec.weights == PUBLISHED_WEIGHTS:
        # Their file is looked for by the run, which may be on another host.
        return
    known: dict[str, str] | None = None
    made = session.scalars(
        select(Job)
        .join(JobFile, JobFile.job_id == Job.id)
        .where(JobFile.sha256 == spec.weights, JobFile.kind == FileKind.WEIGHTS)
    ).first()
    model = session.scalars(select(Model).where(Model.weights_sha256 == spec.weights)).first()
    if made is not None:
        known = made.spec
    elif model is not None:
        known = {"architecture": model.architecture, "dataset": model.dataset}
    elif session.get(Upload, spec.weights) is None:
        raise Unprocessable(
            f"weights: no weights with sha256 {spec.weights} are stored here; take the value of weights_sha256 from a "
            "finished train job, or send the file to /api/v1/weights first"
        )
    for field in ("architecture", "dataset"):
        asked = getattr(spec, field)
        if known is not None and asked != known[field]:
            raise Unprocessable(f"{field}: these weights are known with {field} {known[field]!r}, not {asked!r}")
