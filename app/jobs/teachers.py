"""Distillation: the teacher that a spec names is looked up, and a student waits while its teacher is trained."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.boards.naming import zoo_name
from app.core.errors import Unprocessable
from app.db.database import database_now
from app.db.tables import Entry, FileKind, Job, JobFile, Model
from app.jobs.outbox import enqueue
from app.jobs.state import add_event, move
from gkl.answers import TRAININGS, JobKind, JobState
from gkl.catalog import ARCHITECTURES
from gkl.errors import FailureCode
from gkl.spec import PUBLISHED_WEIGHTS, DistillSpec, TeacherEntry, TeacherJob, TeacherWeights

_MOST_IN_A_ROW = 20


def looked_up(session: Session, spec: DistillSpec, *, is_locking: bool = True) -> tuple[DistillSpec, Job | None]:
    """Put the weights of the job or entry that a spec names as teacher in their place.

    Args:
        session: a transaction.
        spec: as it was sent.
        is_locking: whether to lock the row of a teacher's job, so that it does not end before its student is queued;
            False for a check without creating a job.

    Returns:
        The spec with the teacher's weights, and None; or the spec as it is, and the unfinished job that trains them.

    Raises:
        Unprocessable: the teacher is not there, has failed, or classifies other images.
    """
    teacher = spec.teacher
    if isinstance(teacher, TeacherEntry):
        return _with_teacher(spec, _of_entry(session, spec, teacher.entry)), None
    if isinstance(teacher, TeacherWeights) and teacher.weights is None:
        raise Unprocessable(
            f"teacher.weights: name the file of the {teacher.architecture} to learn from by its sha256, or give "
            '{"job": 12} as teacher for the network that job 12 trains'
        )
    if not isinstance(teacher, TeacherJob):
        return spec, None
    job = session.get(Job, teacher.job, with_for_update={"read": True} if is_locking else None)
    if job is None or job.kind not in TRAININGS:
        what = "there is no job" if job is None else f"job {job.id} trains no network: it is of kind {job.kind}; no job"
        raise Unprocessable(f"teacher.job: {what} {teacher.job}; name a job of kind 'train' or 'distill'")
    if job.spec.get("dataset") != spec.dataset:
        raise Unprocessable(
            f"teacher.job: job {job.id} learns {job.spec.get('dataset')}, and the student {spec.dataset}; choose a "
            "teacher for the same data set"
        )
    if job.state in (JobState.FAILED, JobState.CANCELLED, JobState.CANCELLING):
        raise Unprocessable(f"teacher.job: job {job.id} is {job.state}; retry it first, or choose another teacher")
    if job.state is not JobState.SUCCEEDED:
        _check_row(session, job)
        return spec, job
    return _with_teacher(spec, _trained_by(session, job)), None


def dataset_of(session: Session, *, job_id: int | None = None, entry_id: int | None = None) -> str | None:
    """The data set of the network that a job trains or that an entry shows; None if there is no such job or entry."""
    if entry_id is not None:
        entry = session.get(Entry, entry_id)
        return None if entry is None else entry.dataset
    job = None if job_id is None else session.get(Job, job_id)
    return None if job is None else job.spec.get("dataset")


def can_teach(entry: Entry) -> bool:
    """Whether a student can learn from the network of an entry: its weights are here, or they are published."""
    return entry.model is not None or _published(entry) is not None


def _published(entry: Entry) -> str | None:
    """The name of an imported entry's network whose weights RobustBench publishes; None if there is none."""
    return None if entry.source is None else zoo_name(entry.dataset, entry.board, entry.slug)


def _check_row(session: Session, teacher: Job) -> None:
    """
    Raises:
        Unprocessable: too many jobs wait for each other in a row. The end of the first one ends all of them.
    """
    waiting: Job | None = teacher
    for _ in range(_MOST_IN_A_ROW):
        if waiting is None or waiting.awaits_id is None or waiting.due_at is not None:
            return
        waiting = session.get(Job, waiting.awaits_id)
    raise Unprocessable(
        f"teacher.job: job {teacher.id} waits at the end of a row of {_MOST_IN_A_ROW} jobs that teach each other; send "
        "this job when some of them have ended"
    )


def _trained_by(session: Session, job: Job) -> TeacherWeights:
    # Not by the model: another job with the same spec and seed may have made the same weights before.
    left = select(JobFile.sha256).where(JobFile.job_id == job.id, JobFile.kind == FileKind.WEIGHTS)
    weights = session.scalar(left.order_by(JobFile.number.desc()).limit(1))
    if weights is None:
        raise Unprocessable(
            f"teacher.job: the weights that job {job.id} trained are no longer stored; train them again, or send the "
            "file, and name its sha256 and the architecture"
        )
    return TeacherWeights(architecture=job.spec["architecture"], weights=weights)


def _of_entry(session: Session, spec: DistillSpec, number: int) -> TeacherWeights:
    entry = session.get(Entry, number)
    if entry is None:
        raise Unprocessable(f"teacher.entry: there is no entry {number}; take the number in its page's address")
    if entry.dataset != spec.dataset:
        raise Unprocessable(
            f"teacher.entry: entry {number} is of {entry.dataset}, and the student learns {spec.dataset}; choose an "
            "entry of the same data set"
        )
    if entry.model is not None:
        return _of_model(entry.model)
    published = _published(entry)
    if published is None:
        raise Unprocessable(
            f"teacher.entry: the weights of entry {number} are not here; send them, and name their sha256 and the "
            "architecture"
        )
    return TeacherWeights(architecture=published, weights=PUBLISHED_WEIGHTS)


def _of_model(model: Model) -> TeacherWeights:
    is_published = "/" in model.architecture and model.architecture in ARCHITECTURES and model.train_job_id is None
    weights = model.weights_sha256
    if is_published and not any(_is_a_file(evaluation.manifest) for evaluation in model.evaluations):
        weights = PUBLISHED_WEIGHTS
    return TeacherWeights(architecture=model.architecture, weights=weights, weights_key=model.weights_key or None)


def _is_a_file(manifest: dict[str, object]) -> bool:
    """Whether an evaluation was of a file that was sent or trained here, rather than of published weights."""
    spec = manifest.get("spec")
    return isinstance(spec, dict) and spec.get("weights") != PUBLISHED_WEIGHTS


def _with_teacher(spec: DistillSpec, teacher: TeacherWeights) -> DistillSpec:
    # Validated again: the teacher of a job may have an architecture for other images.
    return DistillSpec.model_validate(spec.model_dump() | {"teacher": teacher.model_dump()})


def release_students(session: Session, job: Job) -> None:
    """Make the jobs due that waited for the network which this training has just left. Its file is recorded."""
    waiting = select(Job).where(Job.awaits_id == job.id, Job.state == JobState.QUEUED, Job.due_at.is_(None))
    for student in session.scalars(waiting.with_for_update().execution_options(populate_existing=True)).all():
        try:
            taught = _with_teacher(DistillSpec.model_validate(student.spec), _trained_by(session, job))
        except ValidationError:
            # A student of another version must not undo the end of its teacher.
            _fail(session, student)
            continue
        student.spec = taught.model_dump(mode="json")
        assert isinstance(taught.teacher, TeacherWeights)
        student.weights_sha256 = taught.teacher.weights
        student.due_at = database_now(session)
        session.flush()
        reason = f"its teacher, job {job.id}, has succeeded"
        add_event(session, student.id, "state", {"state": JobState.QUEUED, "reason": reason})
        enqueue(session, student)


def _fail(session: Session, student: Job) -> None:
    move(
        session,
        student,
        JobState.FAILED,
        failure_code=FailureCode.INVALID_INPUT,
        failure_message="this version cannot run its spec with the teacher that it waited for; send a new job",
    )


@dataclass(frozen=True)
class KnownTeacher:
    """The teacher of a distillation, with what this service knows of it."""

    architecture: str | None
    """None while its job or entry has not been looked up."""
    weights: str | None
    """sha256 of its file, or 'robustbench'."""
    weights_key: str | None
    job_id: int | None
    """The job that trains or trained it."""
    entry_id: int | None
    """An entry that shows it."""
    model: Model | None
    clean_accuracy: float | None
    """On the data set's test images, as the finished distillation measured it."""


def teacher_of(session: Session, job: Job, student: Model | None) -> KnownTeacher | None:
    """The teacher of a distillation; None for other jobs, and for a student that learns from labels alone.

    Args:
        session: a transaction.
        job: any job.
        student: the model that it trained, if it has succeeded.
    """
    if job.kind is not JobKind.DISTILL:
        return None
    try:
        spec = DistillSpec.model_validate(job.spec)
    except ValidationError:
        # Another version wrote it.
        return None
    if spec.teacher is None:
        return None
    accuracy = None if student is None else student.teacher_accuracy
    teacher = spec.teacher
    if not isinstance(teacher, TeacherWeights):
        job_id, entry_id = (teacher.job, None) if isinstance(teacher, TeacherJob) else (None, teacher.entry)
        return KnownTeacher(None, None, None, job_id, entry_id, None, accuracy)
    # Published weights are a model here once an evaluation has measured them.
    named = student.teacher_sha256 if student is not None and teacher.weights == PUBLISHED_WEIGHTS else teacher.weights
    key = student.teacher_key if student is not None else teacher.weights_key or ""
    same = {"weights_sha256": named, "weights_key": key, "architecture": teacher.architecture}
    model = session.scalars(select(Model).filter_by(**same)).first()
    waited_for = None if job.awaits_id is None else session.get(Job, job.awaits_id)
    job_id = waited_for.id if waited_for is not None else None if model is None else model.train_job_id
    entry_id = _entry_of(session, teacher, model)
    return KnownTeacher(teacher.architecture, teacher.weights, teacher.weights_key, job_id, entry_id, model, accuracy)


def _entry_of(session: Session, teacher: TeacherWeights, model: Model | None) -> int | None:
    """The first entry that shows a network; None if there is none."""
    if model is not None:
        shown = select(Entry.id).where(Entry.model_id == model.id)
    elif teacher.weights == PUBLISHED_WEIGHTS:
        dataset, board, slug = teacher.architecture.split("/", 2)
        shown = select(Entry.id).where(Entry.dataset == dataset, Entry.board == board, Entry.slug == slug)
    else:
        return None
    return session.scalars(shown.order_by(Entry.id).limit(1)).first()


def students_of(session: Session, job: Job, *, limit: int) -> list[Job]:
    """The distillations that wait for the network of a training, or that learn or learned from it; newest first."""
    if job.kind not in TRAININGS:
        return []
    trained = select(JobFile.sha256).where(JobFile.job_id == job.id, JobFile.kind == FileKind.WEIGHTS)
    learns = or_(Job.awaits_id == job.id, Job.weights_sha256.in_(trained))
    query = select(Job).where(Job.kind == JobKind.DISTILL, learns).order_by(Job.id.desc()).limit(limit)
    return list(session.scalars(query))
