"""The page of a job."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, Field, ValidationError

from app import jobs
from app.accounts import quotas
from app.boards import results
from app.core.formatting import about
from app.db.database import database_now
from app.db.tables import Job, JobEvent
from app.evidence import external, reports, transfers
from app.evidence.compare import training_differences
from app.http.parameters import MAX_ID, JobId
from app.http.service import ServiceDep
from app.jobs import beside, holdings, job_files, job_log, job_metrics, run_time, teachers
from app.jobs.waterfall import Waterfall, waterfall
from app.web.attempts import attempts
from app.web.panels import Run, panels_of
from app.web.rendering import Chosen, render
from app.web.ways_out import way_out
from gkl.answers import TRAININGS, JobKind, JobState
from gkl.outcome import Progress, StepMetrics
from gkl.spec import RUN_SPEC, EvaluateSpec

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

_LOG_TAIL_BYTES = 16 * 1024
_STUDENTS_SHOWN = 20
# States of a training from whose network a new job can learn; it waits while the training has not ended.
_TEACHING = (JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED)


class _View(BaseModel):
    """Query parameters of the page."""

    epoch: Annotated[Annotated[int, Field(ge=1, le=MAX_ID)] | None, Chosen] = None
    """The epoch at the cursor of the curves; by default the last one."""

    beside: list[Annotated[int, Field(ge=1, le=MAX_ID)]] = Field(default=[], max_length=100)
    """Jobs whose curves are drawn with this one's."""


@router.get("/jobs/{job_id}")
def job(request: Request, service: ServiceDep, job_id: JobId, view: Annotated[_View, Query()]) -> Response:
    with service.database.reading() as session:
        found = jobs.get(session, job_id)
        events = jobs.events_after(session, job_id, 0, limit=100_000)
        history, now = [event for event in events if event.type == "state"], database_now(session)
        others = beside.chosen(session, found, view.beside)
        runs = [Run(found.id, found.name, job_metrics.epochs_of(events))]
        runs += [Run(other.id, other.name, job_metrics.epochs(session, other.id)) for other in others]
        attacks, expected = _attacks_of_last_attempt(events), run_time.expected(session, found, now)
        saved = job_files.resume_files(session, job_id)
        progress = jobs.progress(found)
        model = results.models_of_jobs(session, [job_id]).get(job_id)
        students = teachers.students_of(session, found, limit=_STUDENTS_SHOWN + 1)
        suggested = beside.suggested(session, found)
        return render(
            request,
            "job.html",
            job=found,
            progress=progress,
            step=_step(progress),
            expected=expected,
            ends_at=None if expected is None or found.state is not JobState.RUNNING else _later(now, expected),
            announced=_announced(found, progress, expected),
            model=model,
            teacher=teachers.teacher_of(session, found, model),
            students=students[:_STUDENTS_SHOWN],
            has_more_students=len(students) > _STUDENTS_SHOWN,
            can_teach=found.kind in TRAININGS and found.state in _TEACHING,
            evaluation=results.evaluation_of_job(session, job_id),
            attack=external.attack_of_job(session, job_id),
            transfer=transfers.of_job(session, job_id),
            entry_id=reports.entry_ids_by_job(session, [job_id]).get(job_id),
            curves=panels_of(runs, view.epoch),
            others=others,
            suggested=[*others, *(each for each in suggested if each.id not in view.beside)],
            differences=training_differences([found.spec, *(other.spec for other in others)]) if others else [],
            attacks=attacks,
            falls=_waterfall(found, attacks),
            history=history,
            attempts=attempts(history),
            seconds=jobs.seconds_on_workers(found, now),
            now=now,
            saved=saved,
            way_out=way_out(found, has_saved=bool(saved)),
            waits_for=quotas.why_waiting(session, found),
            missing=holdings.missing_by_job(session, [found], lease=timedelta(seconds=service.settings.lease_seconds)),
            log=job_log.tail(session, job_id, _LOG_TAIL_BYTES),
        )


def _later(now: datetime, expected: run_time.Expected) -> datetime:
    return now + timedelta(seconds=expected.seconds_left)


def _announced(job: Job, progress: dict[str, Any] | None, expected: run_time.Expected | None) -> tuple[str, str]:
    """The text for screen readers, and a key that changes with the state and every 10 % of progress."""
    said = f"Job {job.id} is {job.state}" if job.state in _LASTING else f"Job {job.id} has {job.state}"
    if job.state is JobState.CANCELLED:
        said = f"Job {job.id} was cancelled"
    if job.state is not JobState.RUNNING or progress is None:
        return job.state, f"{said}."
    tenth = int(10 * progress["fraction"])
    left = "" if expected is None else f", {about(expected.seconds_left)} left"
    return f"{job.state} {tenth}", f"{said}: {10 * tenth} % done{left}."


_LASTING = (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING)


def _step(progress: dict[str, Any] | None) -> StepMetrics | None:
    """What the latest training step measured."""
    try:
        # What another version's worker has written may be different.
        return None if progress is None else Progress.model_validate(progress).metrics
    except ValidationError:
        return None


def _waterfall(job: Job, attacks: list[dict[str, Any]]) -> Waterfall | None:
    """The points left so far, for a running evaluation or shard that has reported them."""
    if job.state is not JobState.RUNNING or job.progress is None or job.kind not in (JobKind.EVALUATE, JobKind.SHARD):
        return None
    try:
        # A worker of another version may have written another format.
        spec, progress = RUN_SPEC.validate_python(job.spec), Progress.model_validate(job.progress)
    except ValidationError:
        return None
    if progress.points is None or not isinstance(spec, EvaluateSpec):
        return None
    seconds = {each["attack"]: each["seconds"] for each in attacks}
    of = "points" if job.kind is JobKind.EVALUATE else "points of this shard"
    return waterfall(progress.points, spec.evaluation, seconds, of=of)


def _attacks_of_last_attempt(events: list[JobEvent]) -> list[dict[str, Any]]:
    """The attacks of the last attempt: an evaluation that resumed reports all its attacks again."""
    attacks: list[dict[str, Any]] = []
    for event in events:
        if event.type == "state" and event.data["state"] == JobState.RUNNING:
            attacks = []
        elif event.type == "attack":
            attacks.append(event.data["outcome"])
    return attacks
