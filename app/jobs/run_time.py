"""How long a job is going to be on workers, as far as what was measured here tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from gkl.spec import RUN_SPEC, EvaluateSpec, TrainSpec

_LOOKED_AT = 10
_TAKEN = 5
_EPOCHS = 20
# Share of a job that has to be done before its own speed tells of the rest.
_TELLING = 0.05
# What an epoch does not take longer for.
_FREE = {
    *("kind", "name", "epochs", "seed", "schedule", "optimizer", "threat_model", "label_smoothing", "epsilon_ramp"),
    *("evaluation", "publication"),
}


def warning(session: Session, spec: TrainSpec | EvaluateSpec, *, max_seconds: float) -> str | None:
    """A sentence for one that will not fit into the time that a job may be on workers; None if it may fit."""
    found = next(_alike(session, spec), None)
    if found is None:
        return None
    seconds, job_id = found
    if seconds <= max_seconds:
        return None
    return (
        f"as job {job_id} tells, it will be on workers for about {duration(seconds)}, and a job may be for "
        f"{duration(max_seconds)}: it will then fail with timed_out, and a retry goes on from what it saved"
    )


@dataclass(frozen=True)
class Estimate:
    """How long a job will be on a worker, by the time that earlier ones took."""

    seconds: float
    """The median, scaled to the epochs or points that are asked for; of an evaluation in shards for each of them."""
    jobs: int
    """How many earlier jobs it is taken from."""

    def __str__(self) -> str:
        return f"about {duration(self.seconds)} on a worker here, from {count(self.jobs, 'earlier job')}"


def estimate(session: Session, spec: TrainSpec | EvaluateSpec) -> Estimate | None:
    """By the newest jobs that differ in nothing that the time depends on; None where there are none."""
    found = [seconds for seconds, _ in islice(_alike(session, spec), _TAKEN)]
    return Estimate(median(found), len(found)) if found else None


def _alike(session: Session, spec: TrainSpec | EvaluateSpec) -> Iterator[tuple[float, int]]:
    """Seconds by earlier jobs that differ in nothing that the time depends on, and their numbers; the newest first."""
    if isinstance(spec, EvaluateSpec):
        yield from ((seconds, job.id) for job, seconds in _evaluations(session, spec))
        return
    asked = _timed(spec.model_dump(mode="json"))
    for job in _trainings(session, spec):
        if _timed(job.spec) == asked and (seconds := _seconds_of_epoch(session, job)) is not None:
            yield seconds * spec.epochs, job.id


def _timed(spec: dict[str, Any]) -> dict[str, Any]:
    """What an epoch's time depends on."""
    return {name: value for name, value in spec.items() if name not in _FREE}


def _trainings(session: Session, spec: TrainSpec) -> Iterable[Job]:
    """The newest that have ended well with the same architecture and data set."""
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
    # What an earlier version wrote may lack it; a guess must never keep a job from being sent.
    seconds = [data["seconds"] for data in session.scalars(epochs) if "seconds" in data]
    return median(seconds) if seconds else None


def _evaluations(session: Session, spec: EvaluateSpec) -> Iterator[tuple[Job, float]]:
    """The newest of the same architecture with the same attacks, with the seconds that this one would have taken."""
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
    """How long a job will still be on workers."""

    seconds_left: float
    source: str
    """What that is estimated from, in words."""


def expected(session: Session, job: Job, now: datetime) -> Expected | None:
    """From a running job's own progress; before there is any, from earlier jobs of its kind, data set and architecture.

    Of a queued job it is the time that it will take once a worker has it. None where nothing tells, or where the
    earlier ones were faster and so tell nothing of the rest.
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
    # A stage that gives no estimate of its own, late enough for the whole to give one.
    return spent * (1 - fraction) / fraction if _TELLING <= fraction < 1 else None


def _earlier(session: Session, job: Job) -> list[tuple[Job, float]]:
    """With the seconds that this job would have taken like them. Those that differ in nothing that costs time, if any
    do not."""
    try:
        spec = RUN_SPEC.validate_python(job.spec)
    except ValidationError:
        return []
    if isinstance(spec, EvaluateSpec):
        return [(other, seconds) for other, seconds in _evaluations(session, spec) if other.id != job.id]
    if not isinstance(spec, TrainSpec):
        return []
    trained = [other for other in _trainings(session, spec) if other.id != job.id]
    same = [other for other in trained if _timed(other.spec) == _timed(job.spec)]
    timed = [(other, _seconds_of_epoch(session, other)) for other in same or trained]
    return [(other, seconds * spec.epochs) for other, seconds in timed if seconds is not None]


def _host(job: Job) -> str | None:
    """A worker's name is its host's and the number of its process."""
    return None if job.worker is None else job.worker.rpartition("/")[0]
