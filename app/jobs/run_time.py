"""How long a job will run, estimated from the times of earlier jobs and from its own progress."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from statistics import median
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import jobs
from app.core.formatting import count, duration
from app.db.tables import Evaluation, Job, JobEvent, Model
from gkl.answers import JobState
from gkl.catalog import DATASETS
from gkl.spec import RUN_SPEC, BaseTrainSpec, EvaluateSpec, SentSpec

_LOOKED_AT = 10
_TAKEN = 5
_EPOCHS = 20
# The share of a job that must be done before its own speed is used to estimate the rest.
_TELLING = 0.05
# Fields that do not change how long an epoch takes.
_FREE = {
    *("kind", "name", "epochs", "seed", "schedule", "optimizer", "threat_model", "label_smoothing", "epsilon_ramp"),
    *("evaluation", "publication"),
}


def warning(session: Session, spec: SentSpec, *, max_seconds: float) -> str | None:
    """A sentence if the job is likely to exceed the time limit; None if it may fit."""
    found = next(_alike(session, spec), None)
    if found is None:
        return None
    seconds, job_id = found
    if seconds <= max_seconds:
        return None
    return (
        f"judging by job {job_id}, it will run for about {duration(seconds)}, and the limit is "
        f"{duration(max_seconds)}: it will then fail with timed_out, and a retry resumes from what it saved"
    )


@dataclass(frozen=True)
class Estimate:
    """How long a job will run on a worker, estimated from earlier jobs."""

    seconds: float
    """The median, scaled to the requested epochs or points; for an evaluation in shards, the time of one shard."""
    jobs: int
    """The number of earlier jobs that were used."""

    def __str__(self) -> str:
        return f"about {duration(self.seconds)} on a worker here, from {count(self.jobs, 'earlier job')}"


def estimate(session: Session, spec: SentSpec) -> Estimate | None:
    """Estimate the time from the newest comparable jobs (`_alike`); None if there are none."""
    found = [seconds for seconds, _ in islice(_alike(session, spec), _TAKEN)]
    return Estimate(median(found), len(found)) if found else None


def _alike(session: Session, spec: SentSpec) -> Iterator[tuple[float, int]]:
    """Expected seconds and job number for each earlier job with the same values of all fields that the time depends
    on; the newest first."""
    if isinstance(spec, EvaluateSpec):
        yield from ((seconds, job.id) for job, seconds in _evaluations(session, spec))
        return
    asked = _timed(spec.model_dump(mode="json"))
    for job in _trainings(session, spec):
        if _timed(job.spec) == asked and (seconds := _seconds_of_epoch(session, job)) is not None:
            yield seconds * spec.epochs, job.id


def _timed(spec: dict[str, Any]) -> dict[str, Any]:
    """The fields that the time of an epoch depends on."""
    with suppress(ValidationError):
        # With the fields that were added since, whose defaults are what earlier versions did.
        spec = RUN_SPEC.validate_python(spec).model_dump(mode="json")
    return {name: value for name, value in spec.items() if name not in _FREE}


def _trainings(session: Session, spec: BaseTrainSpec) -> Iterable[Job]:
    """The newest succeeded trainings with the same architecture and data set."""
    return session.scalars(
        select(Job)
        .join(Model, Model.train_job_id == Job.id)
        .where(Model.architecture == spec.architecture, Model.dataset == spec.dataset)
        .order_by(Model.id.desc())
        .limit(_LOOKED_AT)
    )


def _seconds_of_epoch(session: Session, job: Job) -> float | None:
    epochs = (
        select(JobEvent.data)
        .where(JobEvent.job_id == job.id, JobEvent.type == "epoch")
        .order_by(JobEvent.id.desc())
        .limit(_EPOCHS)
    )
    # Events of an earlier version may lack it; a missing estimate must never prevent a job.
    seconds = [data["seconds"] for data in session.scalars(epochs) if "seconds" in data]
    return median(seconds) if seconds else None


def _evaluations(session: Session, spec: EvaluateSpec) -> Iterator[tuple[Job, float]]:
    """The newest evaluations of the same architecture with the same attacks, each with the seconds that this one would
    have taken."""
    asked, threat_model = spec.evaluation, spec.evaluation.threat_model
    measured = (
        select(Evaluation, Job)
        .join(Evaluation.model)
        .join(Job, Job.id == Evaluation.job_id)
        .where(
            Model.architecture == spec.architecture,
            Model.dataset == spec.dataset,
            Evaluation.protocol == asked.protocol,
            Evaluation.norm == (None if threat_model is None else threat_model.norm),
            Evaluation.is_provisional.is_(False),
        )
        .order_by(Evaluation.id.desc())
        .limit(_LOOKED_AT)
    )
    attacks = asked.model_dump(mode="json").get("attacks")
    for found, job in session.execute(measured):
        if found.manifest.get("spec", {}).get("evaluation", {}).get("attacks") == attacks:
            points = asked.num_points or DATASETS[spec.dataset].num_test
            yield job, found.seconds * points / found.num_points / asked.shards


# --- of a job that has been sent ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """How much longer a job will run."""

    seconds_left: float
    source: str
    """What the estimate is based on, in words."""


def expected(session: Session, job: Job, now: datetime) -> Expected | None:
    """Estimate from a running job's own progress; before there is any, from earlier jobs of its kind, data set and
    architecture.

    For a queued job it is the time that it takes once a worker has it. None if there is nothing to estimate from, or
    if the job has already taken longer than the earlier ones.
    """
    if job.state not in (JobState.QUEUED, JobState.RUNNING) or job.shards:
        return None
    spent = jobs.seconds_on_workers(job, now) or 0.0
    if job.state is JobState.RUNNING and (left := _by_progress(job, spent)) is not None:
        return Expected(left, "by its own progress")
    found = _earlier(session, job)
    if not found:
        return None
    where = ""
    if job.state is JobState.RUNNING and job.worker is not None:
        here = [(other, seconds) for other, seconds in found if _host(other) == _host(job)]
        where = " on this host" if here else " on other hosts"
        found = here or found
    left = median(seconds for _, seconds in found) - spent
    names = [f"job {other.id}" for other, _ in found[:3]]
    source = f"as {' and '.join(names[-2:]) if len(names) < 3 else f'{names[0]}, {names[1]} and others'} took{where}"
    return Expected(left, source) if left > 0 else None


def _by_progress(job: Job, spent: float) -> float | None:
    progress = job.progress or {}
    left = progress.get("seconds_left")
    if left is not None:
        return float(left)
    fraction = progress.get("fraction", 0.0)
    # The stage gives no estimate of its own: extrapolate from the whole job, once enough of it is done.
    return spent * (1 - fraction) / fraction if _TELLING <= fraction < 1 else None


def _earlier(session: Session, job: Job) -> list[tuple[Job, float]]:
    """Earlier jobs with the seconds that this job would have taken like them. If some have the same values of all
    fields that the time depends on, only those."""
    try:
        spec = RUN_SPEC.validate_python(job.spec)
    except ValidationError:
        return []
    if isinstance(spec, EvaluateSpec):
        return [(other, seconds) for other, seconds in _evaluations(session, spec) if other.id != job.id]
    if not isinstance(spec, BaseTrainSpec):
        return []
    trained = [other for other in _trainings(session, spec) if other.id != job.id]
    same = [other for other in trained if _timed(other.spec) == _timed(job.spec)]
    timed = [(other, _seconds_of_epoch(session, other)) for other in same or trained]
    return [(other, seconds * spec.epochs) for other, seconds in timed if seconds is not None]


def _host(job: Job) -> str | None:
    """The host in the worker's name, which is the host and a process number."""
    return None if job.worker is None else job.worker.rpartition("/")[0]
