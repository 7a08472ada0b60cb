"""Teachers that are looked up, and students that wait for them, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from app import jobs
from app.boards import results
from app.core.errors import Unprocessable
from app.db.database import Database
from app.db.tables import Entry, FileKind, Job
from app.jobs import job_files
from app.store import StoredFile
from gkl.answers import JobState
from gkl.errors import FailureCode
from gkl.outcome import TeacherOutcome
from gkl.recipes import recipe
from gkl.spec import DistillSpec, TeacherWeights
from tests.app.boards.test_results import measure, sha
from tests.app.boards.test_results import train as trained
from tests.app.jobs.test_jobs import LEASE, history, look, owed, send, take


def student(**changes: Any) -> DistillSpec:
    spec = recipe("digits-distill").model_dump(mode="json") | {"evaluation": None}
    return DistillSpec.model_validate(spec | changes)


def sent(database: Database, **changes: Any) -> int:
    with database.writing() as session:
        return jobs.create(session, student(**changes)).id


def finish(database: Database, claimed: jobs.Claim, weights: str) -> None:
    """End a training as its worker does."""
    with database.writing() as session:
        job = jobs.succeed(session, claimed)
        stored = StoredFile(weights, 10)
        job_files.add_file(session, job.id, FileKind.WEIGHTS, number=1, file="w", stored=stored)
        results.record_model(session, job, claimed.spec, weights)  # type: ignore[arg-type]
        jobs.release_students(session, job)


def teacher_of(database: Database, job_id: int) -> Any:
    return look(database, job_id).spec["teacher"]


def test_a_student_waits_until_its_teacher_is_trained(database: Database) -> None:
    teacher = send(database)
    waiting = sent(database, teacher={"job": teacher})
    job = look(database, waiting)
    assert (job.state, job.due_at, job.awaits_id) == (JobState.QUEUED, None, teacher)
    claimed = take(database)
    assert claimed.job_id == teacher
    with database.writing() as session:
        assert jobs.claim(session, worker="idle", lease=LEASE) is None
    owed(database)
    finish(database, claimed, sha("teacher"))
    assert owed(database) == [waiting]
    job = look(database, waiting)
    assert job.due_at is not None
    assert job.weights_sha256 == sha("teacher")
    named = {"kind": "weights", "architecture": "small_cnn", "weights": sha("teacher"), "weights_key": None}
    assert teacher_of(database, waiting) == named
    assert take(database).spec.teacher == TeacherWeights.model_validate(named)  # type: ignore[union-attr]


def test_a_teacher_that_is_trained_already_is_named_at_once(database: Database) -> None:
    teacher = send(database)
    finish(database, take(database), sha("teacher"))
    job = look(database, sent(database, teacher={"job": teacher}))
    assert (job.due_at is not None, job.awaits_id) == (True, None)
    assert job.spec["teacher"]["weights"] == sha("teacher")


def test_a_training_that_is_repeated_teaches_with_the_same_weights(database: Database) -> None:
    """The model belongs to the first job that made it."""
    first, again = send(database), send(database)
    waiting = sent(database, teacher={"job": again})
    finish(database, take(database), sha("teacher"))
    claimed = take(database)
    assert claimed.job_id == again
    finish(database, claimed, sha("teacher"))
    assert teacher_of(database, waiting)["weights"] == sha("teacher")
    assert first != again


def test_a_student_of_another_version_fails_alone(database: Database) -> None:
    teacher = send(database)
    waiting = sent(database, teacher={"job": teacher})
    with database.writing() as session:
        row = jobs.get(session, waiting)
        row.spec = row.spec | {"warp": 9}
    finish(database, take(database), sha("teacher"))
    assert look(database, teacher).state is JobState.SUCCEEDED
    assert look(database, waiting).state is JobState.FAILED
    assert "this version cannot run its spec" in (look(database, waiting).failure_message or "")


@pytest.mark.parametrize("ends", ["fails", "is cancelled"])
def test_a_student_fails_with_its_teacher_and_is_retried_after_it(database: Database, ends: str) -> None:
    teacher = send(database)
    waiting = sent(database, teacher={"job": teacher})
    claimed = take(database)
    with database.writing() as session:
        if ends == "fails":
            jobs.fail(session, claimed, FailureCode.NON_FINITE_LOSS, "the loss became nan")
        else:
            jobs.request_cancel(session, teacher)
            jobs.end_cancelled(session, claimed)
    job = look(database, waiting)
    assert (job.state, job.failure_code) == (JobState.FAILED, FailureCode.INVALID_INPUT)
    assert f"its teacher, job {teacher}, has" in (job.failure_message or "")
    with database.writing() as session, pytest.raises(Unprocessable, match=rf"teacher.job: job {teacher} is"):
        jobs.retry(session, waiting)
    with database.writing() as session:
        jobs.retry(session, teacher)
    with database.writing() as session:
        jobs.retry(session, waiting)
    assert (look(database, waiting).state, look(database, waiting).due_at) == (JobState.QUEUED, None)
    finish(database, take(database), sha("teacher"))
    assert take(database).job_id == waiting
    assert history(database, waiting) == ["queued", "failed", "queued", "queued", "running"]


def test_a_waiting_student_can_be_cancelled(database: Database) -> None:
    teacher = send(database)
    waiting = sent(database, teacher={"job": teacher})
    with database.writing() as session:
        jobs.request_cancel(session, waiting)
    finish(database, take(database), sha("teacher"))
    assert look(database, waiting).state is JobState.CANCELLED


def test_students_of_students_wait_in_a_row(database: Database) -> None:
    first = send(database)
    second = sent(database, teacher={"job": first})
    third = sent(database, teacher={"job": second})
    finish(database, take(database), sha("first"))
    claimed = take(database)
    assert claimed.job_id == second
    finish(database, claimed, sha("second"))
    assert teacher_of(database, third)["architecture"] == "tiny_cnn"
    assert take(database).job_id == third


def test_a_row_of_waiting_students_has_an_end(database: Database) -> None:
    last = send(database)
    for _ in range(20):
        last = sent(database, teacher={"job": last})
    with database.writing() as session, pytest.raises(Unprocessable, match="at the end of a row of 20 jobs"):
        jobs.create(session, student(teacher={"job": last}))


def test_a_chain_fails_from_its_first_job_on(database: Database) -> None:
    first = send(database)
    second = sent(database, teacher={"job": first})
    third = sent(database, teacher={"job": second})
    with database.writing() as session:
        jobs.request_cancel(session, first)
    assert [look(database, each).state for each in (first, second, third)] == [
        JobState.CANCELLED,
        JobState.FAILED,
        JobState.FAILED,
    ]


def test_the_network_of_an_entry_can_teach(database: Database) -> None:
    weights = trained(database, "teacher")
    measure(database, weights, robust=200)
    with database.reading() as session:
        entry_id = session.scalars(select(Entry.id)).one()
    job = look(database, sent(database, teacher={"entry": entry_id}))
    assert job.spec["teacher"]["weights"] == weights


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ({"job": 99}, "teacher.job: there is no job 99"),
        ({"entry": 99}, "teacher.entry: there is no entry 99"),
        ({"architecture": "small_cnn"}, "teacher.weights: name the file of the small_cnn to learn from"),
        ({"architecture": "small_cnn", "weights": "0" * 64}, "teacher.weights: no weights with sha256 0000"),
    ],
)
def test_a_teacher_that_is_not_there_is_refused(database: Database, teacher: dict[str, Any], says: str) -> None:
    with database.writing() as session, pytest.raises(Unprocessable, match=says):
        jobs.create(session, student(teacher=teacher))


def test_a_teacher_of_other_images_or_another_architecture_is_refused(database: Database) -> None:
    weights = trained(database, "teacher")
    named = {"architecture": "tiny_cnn", "weights": weights}
    with database.writing() as session, pytest.raises(Unprocessable, match=r"teacher\.architecture: these weights are"):
        jobs.create(session, student(teacher=named))
    cifar = {"dataset": "cifar10", "architecture": "resnet_8", "teacher": {"job": 1}}
    with database.writing() as session, pytest.raises(Unprocessable, match="job 1 learns digits, and the student"):
        jobs.create(session, student(**cifar))


def test_a_job_that_trains_no_network_is_no_teacher(database: Database) -> None:
    evaluated = measure(database, trained(database, "teacher"), robust=200)
    with database.writing() as session, pytest.raises(Unprocessable, match="it is of kind evaluate"):
        jobs.create(session, student(teacher={"job": evaluated}))


def test_the_model_of_a_student_names_its_teacher(database: Database) -> None:
    weights = trained(database, "teacher")
    sent(database, teacher={"architecture": "small_cnn", "weights": weights})
    claimed = take(database)
    outcome = TeacherOutcome(architecture="small_cnn", weights_sha256=weights, clean_accuracy=0.9, num_points=360)
    with database.writing() as session:
        job: Job = jobs.succeed(session, claimed)
        model = results.record_model(session, job, claimed.spec, sha("student"), teacher=outcome)  # type: ignore[arg-type]
        assert (model.teacher_architecture, model.teacher_sha256, model.teacher_key) == ("small_cnn", weights, "")
        assert (model.teacher_accuracy, model.loss) == (0.9, "gkl")
