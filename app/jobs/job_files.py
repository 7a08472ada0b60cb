"""Files that jobs leave: checkpoints while they run, results when they are done."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.orm import Session

from app.core.errors import NotFound, Unprocessable
from app.db.database import database_now, insert_into
from app.db.tables import TO_GO_ON_FROM, UNFINISHED, FileKind, Job, JobFile, Model, Upload, UploadSender
from app.jobs import weights_contents
from app.store import StoredFile
from gkl.answers import JobKind
from gkl.spec import PUBLISHED_WEIGHTS, DistillSpec, NamedWeights, SentSpec

_KEEP = 2


def add_file(session: Session, job_id: int, kind: FileKind, *, number: int, file: str, stored: StoredFile) -> None:
    """Add a file's row, in place of the one with this number. `app.maintenance.cleanup` removes files without a row."""
    _forget(session, JobFile.job_id == job_id, JobFile.kind == kind, JobFile.number == number)
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


def resume_files(session: Session, job_id: int) -> list[JobFile]:
    """Files that a next attempt resumes from, newest first; for an evaluation also those of its shards."""
    return list(session.scalars(select(JobFile).where(*_is_resume_file(job_id)).order_by(JobFile.number.desc())))


def saved_since(session: Session, job_id: int, moment: datetime) -> bool:
    """Whether the job saved something to resume from after a moment of the database's clock."""
    saved = select(JobFile.id).where(
        JobFile.job_id == job_id, JobFile.kind.in_(TO_GO_ON_FROM), JobFile.created_at > moment
    )
    return session.scalar(saved.limit(1)) is not None


def has_parts(session: Session, job_id: int) -> bool:
    """Whether the finished parts of a shard are still stored."""
    parts = select(JobFile.id).where(JobFile.job_id == job_id, JobFile.kind == FileKind.BLOCK)
    return session.scalar(parts.limit(1)) is not None


def add_resume_point(session: Session, job_id: int, epoch: int, *, file: str, stored: StoredFile) -> list[str]:
    """Add a training's checkpoint, and drop the rows of others: an earlier one of this epoch; those of later epochs,
    which a run that resumed from an older checkpoint writes again; and all but the newest two.

    Returns:
        The sha256 of each dropped checkpoint.
    """
    of_job = (JobFile.job_id == job_id, JobFile.kind == FileKind.RESUME)
    gone = _forget(session, *of_job, JobFile.number >= epoch)
    add_file(session, job_id, FileKind.RESUME, number=epoch, file=file, stored=stored)
    newest = select(JobFile.id).where(*of_job).order_by(JobFile.number.desc()).limit(_KEEP)
    gone += _forget(session, *of_job, JobFile.id.not_in(session.scalars(newest).all()))
    return [sha256 for sha256 in gone if sha256 != stored.sha256]


def named_hashes(session: Session, hashes: Sequence[str]) -> set[str]:
    """Those of the given sha256 that a row names."""
    files = session.scalars(select(JobFile.sha256).where(JobFile.sha256.in_(hashes)))
    uploads = session.scalars(select(Upload.sha256).where(Upload.sha256.in_(hashes)))
    return {*files, *uploads}


def drop_resume_files(session: Session, job_id: int) -> None:
    """Drop the rows of files that only an unfinished job needs; for an evaluation also those of its shards."""
    _forget(session, *_is_resume_file(job_id))


def _is_resume_file(job_id: int) -> tuple[ColumnElement[bool], ...]:
    shards = select(Job.id).where(Job.parent_id == job_id, Job.kind == JobKind.SHARD)
    return or_(JobFile.job_id == job_id, JobFile.job_id.in_(shards)), JobFile.kind.in_(TO_GO_ON_FROM)


def _forget(session: Session, *which: ColumnElement[bool]) -> list[str]:
    return list(session.scalars(delete(JobFile).where(*which).returning(JobFile.sha256)))


def record_upload(
    session: Session, stored: StoredFile, weights_format: str, submitter: str, *, contents: bytes | None = None
) -> Upload:
    """Add uploaded weights; the same file again is the same upload, with a new time.

    `contents`: what `app.jobs.weights_contents.read` returned for the file.
    """
    now = database_now(session)
    row = insert_into(session, Upload).values(
        sha256=stored.sha256,
        format=weights_format,
        size_bytes=stored.size_bytes,
        created_at=now,
        contents=contents,
    )
    # Also keeps the cleanup from removing the file meanwhile.
    session.execute(
        row.on_conflict_do_update(index_elements=["sha256"], set_={"created_at": now, "contents": contents})
    )
    sender = insert_into(session, UploadSender).values(sha256=stored.sha256, submitter=submitter)
    session.execute(sender.on_conflict_do_nothing())
    return session.get_one(Upload, stored.sha256, populate_existing=True)


def upload(session: Session, sha256: str) -> Upload:
    found = session.get(Upload, sha256)
    if found is None:
        raise NotFound(f"no weights with sha256 {sha256} were sent here")
    return found


def were_trained_here(session: Session, sha256: str) -> bool:
    """Whether a training of this service produced weights with this hash."""
    made = select(JobFile.id).where(JobFile.sha256 == sha256, JobFile.kind == FileKind.WEIGHTS)
    return session.scalar(made.limit(1)) is not None


def field_of_weights(spec: SentSpec) -> str:
    """The part of a spec that names its weights, as a prefix of their fields: 'teacher.' of a distillation."""
    return "teacher." if isinstance(spec, DistillSpec) else ""


def check_weights(session: Session, spec: NamedWeights, *, within: str = "", is_locking: bool = True) -> None:
    """Check that the weights which a job is to read are stored, and belong to the network that it names.

    Args:
        session: a transaction.
        spec: the weights and their network, as the job's spec names them.
        within: the part of the spec that does, for messages (`field_of_weights`).
        is_locking: whether to lock the rows of the weights; False for a check without creating a job.

    Raises:
        Unprocessable: the spec names weights that are not stored, or that belong to another network.
    """
    if spec.weights == PUBLISHED_WEIGHTS:
        # The run looks for their file, perhaps on another host.
        return
    # Until this job is created, the locks keep the cleanup from removing the weights, and another job from using them
    # with another architecture.
    uploaded = session.get(Upload, spec.weights, with_for_update=is_locking or None)
    left = select(JobFile.id).where(JobFile.sha256 == spec.weights)
    if is_locking:
        left = left.with_for_update(read=True)
    if uploaded is None and not session.scalars(left).all():
        raise Unprocessable(
            f"{within}weights: no weights with sha256 {spec.weights} are stored here; take the value of weights_sha256 "
            "from a finished train job, or send the file to /api/v1/weights first"
        )
    known: dict[str, str] | None = None
    whence = ""
    made = session.scalars(
        select(Job)
        .join(JobFile, JobFile.job_id == Job.id)
        .where(JobFile.sha256 == spec.weights, JobFile.kind == FileKind.WEIGHTS)
    ).first()
    # Another network in the same file is another model, perhaps of another architecture. Without a key the run lists
    # the keys that the file has.
    same = (Model.weights_sha256 == spec.weights, Model.weights_key == (spec.weights_key or ""))
    model = session.scalars(select(Model).where(*same)).first()
    if made is not None:
        known = made.spec
    elif model is not None:
        known = {"architecture": model.architecture, "dataset": model.dataset}
    else:
        sent = _being_measured(session, spec)
        known, whence = (None, "") if sent is None else (sent.spec, f" to job {sent.id}, which has not ended,")
    for field in ("architecture", "dataset"):
        asked = getattr(spec, field)
        if known is not None and asked != known[field]:
            where = f"{within}{field}" if field == "architecture" else field
            raise Unprocessable(
                f"{where}: these weights are known{whence} with {field} {known[field]!r}, not {asked!r}"
            )
    # The run checks files from torch.save, and files that an earlier version received.
    if uploaded is not None and uploaded.contents is not None:
        problem = weights_contents.problem(uploaded.contents, spec)
        if problem is not None:
            raise Unprocessable(f"{within}weights: {problem}")


def _being_measured(session: Session, spec: NamedWeights) -> Job | None:
    """An unfinished job that evaluates the same network of the same file."""
    unfinished = select(Job).where(
        Job.weights_sha256 == spec.weights, Job.kind == JobKind.EVALUATE, Job.state.in_(UNFINISHED)
    )
    return next((job for job in session.scalars(unfinished) if job.spec.get("weights_key") == spec.weights_key), None)


def record_converted(session: Session, job_id: int, weights: str, stored: StoredFile) -> None:
    """Add the converted file that a job's run made of weights with this sha256, for later evaluations of them."""
    add_file(session, job_id, FileKind.CONVERTED, number=0, file=_converted_name(weights), stored=stored)


def converted(session: Session, weights: str) -> str | None:
    """The sha256 of the file that these weights were converted to; None if they were not."""
    made = select(JobFile.sha256).where(JobFile.kind == FileKind.CONVERTED, JobFile.file == _converted_name(weights))
    return session.scalar(made.order_by(JobFile.id.desc()).limit(1))


def forget_converted(session: Session, hashes: Collection[str]) -> None:
    """Drop the rows of the files that weights with these hashes were converted to."""
    names = [name for weights in hashes for name in (_converted_name(weights), f"{weights}.safetensors")]
    _forget(session, JobFile.kind == FileKind.CONVERTED, JobFile.file.in_(names))


def _converted_name(weights: str) -> str:
    # A conversion by the first version, named without the number, holds only the first network of the file.
    return f"{weights}.2.safetensors"


def check_sent_file(session: Session, job_id: int, kind: FileKind) -> None:
    """Check that the file of this kind that the job was to check is still stored.

    Raises:
        Unprocessable: it is not.
    """
    sent = select(JobFile.id).where(JobFile.job_id == job_id, JobFile.kind == kind)
    if session.scalar(sent) is None:
        raise Unprocessable(f"the {kind} that job {job_id} was to check is no longer stored; send it again")


def forget_examples(session: Session, job_id: int) -> None:
    """Drop a job's sent examples once they are checked: the merged certificate has those that count."""
    _forget(session, JobFile.job_id == job_id, JobFile.kind == FileKind.EXAMPLES)
