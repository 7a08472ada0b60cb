"""Small specs with which the whole way can be gone in seconds."""

from __future__ import annotations

from pathlib import Path

from gkl.recipes.adversarial import digits
from gkl.recipes.distillation import digits_gkl
from gkl.spec import DistillSpec, Evaluation, TeacherJob, ThreatModel, TrainSpec

NO_FILES = Path("/nonexistent")
"""A directory of data sets for runs on digits, which need none."""


def tiny_train_spec(**changes: object) -> TrainSpec:
    """Two epochs, then an evaluation whose budget is so wide that the first attack leaves next to nothing."""
    evaluation = Evaluation(threat_model=ThreatModel(norm="Linf", epsilon=0.9), batch_size=360)
    small = {"name": "Tiny", "architecture": "tiny_cnn", "epochs": 2, "batch_size": 256}
    return digits().model_copy(update=small | {"evaluation": evaluation} | changes)


def endless_train_spec() -> TrainSpec:
    """Would run for hours."""
    return tiny_train_spec(name="Endless", epochs=10_000, evaluation=None)


def distillation_from(job_id: int) -> DistillSpec:
    """A student that learns from the network of a job."""
    return digits_gkl().model_copy(update={"name": "Student", "teacher": TeacherJob(kind="job", job=job_id)})
