"""How long a job is going to be on workers, as far as what was measured here tells."""

from __future__ import annotations

from statistics import median

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.formatting import duration
from app.tables import Evaluation, Job, JobEvent, Model
from gkl.catalog import DATASETS
from gkl.spec import EvaluateSpec, TrainSpec

_LOOKED_AT = 10
_EPOCHS = 20
# What an epoch does not take longer for.
_FREE = {
    *("kind", "name", "epochs", "seed", "schedule", "optimizer", "threat_model", "label_smoothing", "epsilon_ramp"),
    *("evaluation", "publication"),
}


def warning(session: Session, spec: TrainSpec | EvaluateSpec, *, max_seconds: float) -> str | None:
    """A sentence for one that will not fit into the time that a job may be on workers; None if it may fit."""
    found = _epochs(session, spec) if isinstance(spec, TrainSpec) else _attacks(session, spec)
    if found is None:
        return None
    seconds, job_id = found
    if seconds <= max_seconds:
        return None
    return (
        f"as job {job_id} tells, it will be on workers for about {duration(seconds)}, and a job may be for "
        f"{duration(max_seconds)}: it will then fail with timed_out, and a retry goes on from what it saved"
    )


def _epochs(session: Session, spec: TrainSpec) -> tuple[float, int] | None:
    """Seconds, by the epochs of a training that differs in nothing that an epoch's time depends on; and its job."""
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
            return median(seconds) * spec.epochs, job.id
    return None


def _attacks(session: Session, spec: EvaluateSpec) -> tuple[float, int] | None:
    """Seconds, by an evaluation of the same architecture with the same attacks; of one in shards those of a shard."""
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
            return found.seconds * points / found.num_points / asked.shards, found.job_id
    return None
