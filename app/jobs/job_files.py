"""Files that jobs left: points to resume from while they run, results when they are done."""

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
from gkl.spec import PUBLISHED_WEIGHTS, EvaluateSpec

_KEEP = 2


def add(session: Session, job_id: int, kind: FileKind, *, number: int, file: str, stored: StoredFile) -> None:
    """Note a file, in place of an earlier one of this number. `app.maintenance.cleanup` removes files without a row."""
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


def to_go_on_from(session: Session, job_id: int) -> list[JobFile]:
    """What an earlier attempt left for the next, newest first; for an evaluation also what its shards left."""
    return list(session.scalars(select(JobFile).where(*_to_go_on_from(job_id)).order_by(JobFile.number.desc())))


def saved_since(session: Session, job_id: int, moment: datetime) -> bool:
    """Whether the job left something to go on from after a moment of the database's clock."""
    saved = select(JobFile.id).where(
        JobFile.job_id == job_id, JobFile.kind.in_(TO_GO_ON_FROM), JobFile.created_at > moment
    )
    return session.scalar(saved.limit(1)) is not None


def has_parts(session: Session, job_id: int) -> bool:
    """Whether the finished parts of a shard are still here."""
    parts = select(JobFile.id).where(JobFile.job_id == job_id, JobFile.kind == FileKind.BLOCK)
    return session.scalar(parts.limit(1)) is not None


def add_resume_point(session: Session, job_id: int, epoch: int, *, file: str, stored: StoredFile) -> list[str]:
    """Note a training's checkpoint, and forget the one of this epoch that was there, those of later epochs, which a run
    that fell back to an earlier one makes again, and all but the newest two.

    Returns:
        sha256 of each that is forgotten.
    """
    of_job = (JobFile.job_id == job_id, JobFile.kind == FileKind.RESUME)
    gone = _forget(session, *of_job, JobFile.number >= epoch)
    add(session, job_id, FileKind.RESUME, number=epoch, file=file, stored=stored)
    newest = select(JobFile.id).where(*of_job).order_by(JobFile.number.desc()).limit(_KEEP)
    gone += _forget(session, *of_job, JobFile.id.not_in(session.scalars(newest).all()))
    return [sha256 for sha256 in gone if sha256 != stored.sha256]


def named(session: Session, hashes: Sequence[str]) -> set[str]:
    """Of some hashes of content those that a row names."""
    files = session.scalars(select(JobFile.sha256).where(JobFile.sha256.in_(hashes)))
    uploads = session.scalars(select(Upload.sha256).where(Upload.sha256.in_(hashes)))
    return {*files, *uploads}


def forget_all_to_go_on_from(session: Session, job_id: int) -> None:
    """Drop what only an unfinished job needs; with an evaluation's also its shards'."""
    _forget(session, *_to_go_on_from(job_id))


def _to_go_on_from(job_id: int) -> tuple[ColumnElement[bool], ...]:
    shards = select(Job.id).where(Job.parent_id == job_id, Job.kind == JobKind.SHARD)
    return or_(JobFile.job_id == job_id, JobFile.job_id.in_(shards)), JobFile.kind.in_(TO_GO_ON_FROM)


def _forget(session: Session, *which: ColumnElement[bool]) -> list[str]:
    return list(session.scalars(delete(JobFile).where(*which).returning(JobFile.sha256)))


def record_upload(
    session: Session, stored: StoredFile, weights_format: str, submitter: str, *, contents: bytes | None = None
) -> Upload:
    """Note weights that somebody sent; the same file again is the same upload, and as if it had just been sent.

    `contents`: what `app.jobs.weights_contents.read` says of the file.
    """
    now = database_now(session)
    row = insert_into(session, Upload).values(
        sha256=stored.sha256,
        format=weights_format,
        size_bytes=stored.size_bytes,
        created_at=now,
        contents=contents,
    )
    # Also keeps the cleanup from taking it meanwhile.
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
    """Whether a training of this service made weights with this hash."""
    made = select(JobFile.id).where(JobFile.sha256 == sha256, JobFile.kind == FileKind.WEIGHTS)
    return session.scalar(made.limit(1)) is not None


def check_weights(session: Session, spec: EvaluateSpec, *, is_locking: bool = True) -> None:
    """
    Args:
        session: a transaction.
        spec: whose weights.
        is_locking: False where no job is made: the same is said, and nothing is kept from others.

    Raises:
        Unprocessable: the spec names weights that are not here, or that are of another network.
    """
    if spec.weights == PUBLISHED_WEIGHTS:
        # Their file is looked for by the run, which may be on another host.
        return
    # The locks keep the cleanup from taking them for weights that no job needs, and another job from being made with
    # them for another architecture, while this one is being made.
    uploaded = session.get(Upload, spec.weights, with_for_update=is_locking or None)
    left = select(JobFile.id).where(JobFile.sha256 == spec.weights)
    if is_locking:
        left = left.with_for_update(read=True)
    if uploaded is None and not session.scalars(left).all():
        raise Unprocessable(
            f"weights: no weights with sha256 {spec.weights} are stored here; take the value of weights_sha256 from a "
            "finished train job, or send the file to /api/v1/weights first"
        )
    known: dict[str, str] | None = None
    whence = ""
    made = session.scalars(
        select(Job)
        .join(JobFile, JobFile.job_id == Job.id)
        .where(JobFile.sha256 == spec.weights, JobFile.kind == FileKind.WEIGHTS)
    ).first()
    # Another network in the same file is another model, perhaps of another architecture. Without a key the run says
    # which there are.
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
            raise Unprocessable(
                f"{field}: these weights are known{whence} with {field} {known[field]!r}, not {asked!r}"
            )
    # Files that came as a state dict of torch.save, or to an earlier version, are left to the run.
    if uploaded is not None and uploaded.contents is not None:
        problem = weights_contents.problem(uploaded.contents, spec)
        if problem is not None:
            raise Unprocessable(f"weights: {problem}")


def _being_measured(session: Session, spec: EvaluateSpec) -> Job | None:
    """A job that has not ended and measures the same network of the same file."""
    unfinished = select(Job).where(
        Job.weights_sha256 == spec.weights, Job.kind == JobKind.EVALUATE, Job.state.in_(UNFINISHED)
    )
    return next((job for job in session.scalars(unfinished) if job.spec.get("weights_key") == spec.weights_key), None)


def record_converted(session: Session, job_id: int, weights: str, stored: StoredFile) -> None:
    """Note what a job's run made of weights with this sha256, for all that are evaluated with them later."""
    add(session, job_id, FileKind.CONVERTED, number=0, file=_converted_name(weights), stored=stored)


def converted(session: Session, weights: str) -> str | None:
    """sha256 of what weights with this sha256 were converted to, if they were."""
    made = select(JobFile.sha256).where(JobFile.kind == FileKind.CONVERTED, JobFile.file == _converted_name(weights))
    return session.scalar(made.order_by(JobFile.id.desc()).limit(1))


def forget_converted(session: Session, hashes: Collection[str]) -> None:
    """Drop what weights with these hashes were converted to."""
    names = [name for weights in hashes for name in (_converted_name(weights), f"{weights}.safetensors")]
    _forget(session, JobFile.kind == FileKind.CONVERTED, JobFile.file.in_(names))


def _converted_name(weights: str) -> str:
    # The first version's conversions, under the name without the number, hold one network, whichever came first.
    return f"{weights}.2.safetensors"


def check_sent(session: Session, job_id: int, kind: FileKind) -> None:
    """
    Raises:
        Unprocessable: the file of this kind that the job was to check is not here any more.
    """
    sent = select(JobFile.id).where(JobFile.job_id == job_id, JobFile.kind == kind)
    if session.scalar(sent) is None:
        raise Unprocessable(f"the {kind} that job {job_id} was to check is not kept any more; send it again")


def forget_examples(session: Session, job_id: int) -> None:
    """Drop them once they are checked: those that count are in the merged certificate."""
    _forget(session, JobFile.job_id == job_id, JobFile.kind == FileKind.EXAMPLES)
