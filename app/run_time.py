"""How long a job is going to be on workers, as far as what was measured here tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import median

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.formatting import count, duration
from app.tables import Evaluation, Job, JobEvent, Model
from gkl.catalog import DATASETS
from gkl.spec import EvaluateSpec, TrainSpec

_LOOKED_AT = 10
_TAKEN = 5
_EPOCHS = 20
# What an epoch does not take longer for.
_FREE = {
    *("kind", "name", "epochs", "seed", "schedule", "optimizer", "threat_model", "label_smoothing", "epsilon_ramp"),
    *("evaluation", "publication"),
}


def warning(session: Session, spec: TrainSpec | EvaluateSpec, *, max_seconds: float) -> str | None:
    """A sentence for one that will not fit into the time that a job may be on workers; None if it may fit."""
    found = next(_earlier(session, spec), None)
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
    found = [seconds for seconds, _ in islice(_earlier(session, spec), _TAKEN)]
    return Estimate(median(found), len(found)) if found else None


def _earlier(session: Session, spec: TrainSpec | EvaluateSpec) -> Iterator[tuple[float, int]]:
    return _epochs(session, spec) if isinstance(spec, TrainSpec) else _attacks(session, spec)


def _epochs(session: Session, spec: TrainSpec) -> Iterator[tuple[float, int]]:
    """Seconds, by the epochs of trainings that differ in nothing that an epoch's time depends on; and their jobs."""
    trained = (
        select(Job)
        .join(Model, Model.train_job_id == Job.id)
        .where(Model.architecture == spec.architecture, Model.dataset == spec.dataset)
        .order_by(Model.id.desc())
        .limit(_LOOKED_AT)
    )
    asked = spec.model_dump(mode="json", exclude=_FREE)
    for job in session.scalars(trained):
        if {name: value for name, value in job.spec.items() if name not in _FREE} != asked:
            continue
        epochs = (
            select(JobEvent.data)
            .where(JobEvent.job_id == job.id, JobEvent.type == "epoch")
            .order_by(JobEvent.id.desc())
            .limit(_EPOCHS)
        )
        # What an earlier version wrote may lack it; a guess must never keep a job from being sent.
        seconds = [data["seconds"] for data in session.scalars(epochs) if "seconds" in data]
        if seconds:
            yield median(seconds) * spec.epochs, job.id


def _attacks(session: Session, spec: EvaluateSpec) -> Iterator[tuple[float, int]]:
    """Seconds, by evaluations of the same architecture with the same attacks; of one in shards those of a shard."""
    asked, threat_model = spec.evaluation, spec.evaluation.threat_model
    measured = (
        select(Evaluation)
        .join(Evaluation.model)
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
    for found in session.scalars(measured):
        if found.manifest.get("spec", {}).get("evaluation", {}).get("attacks") == asked.model_dump(mode="json").get(
            "attacks"
        ):
            points = asked.num_points or DATASETS[spec.dataset].num_test
            yield found.seconds * points / found.num_points / asked.shards, found.job_id
