"""Models and what was measured of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from gkl.answers.common import Schema
from gkl.outcome import CheckOutcome, CorruptionOutcome, Flag


class AttackView(Schema):
    attack: str
    points: int
    """Points that entered: those that all attacks before left standing."""
    broken: int
    survivors: int
    seconds: float
    discarded: int
    """Misclassified images that it returned from outside the threat model; not counted."""
    loss: str | None
    targets: int | None
    """Classes it aimed at for each point."""


class AccuracyView(Schema):
    accuracy: float = Field(ge=0, le=1)
    correct: int | None
    """Null for a mean over corruptions."""
    points: int
    interval: tuple[float, float]
    """95 % Wilson interval."""


class EvaluationView(Schema):
    id: int
    job_id: int
    threat_model: str
    """Name of the board."""
    norm: str | None
    epsilon: float | None
    protocol: str
    is_complete: bool
    """Whether all test images were taken; only then is it ranked."""
    is_provisional: bool
    """The first attacks' upper bound, while the others run."""
    not_ranked: str | None
    """Why it has no place on a board, in words; null if it has, or will have when it is final."""
    clean: AccuracyView
    robust: AccuracyView | None
    """Under attack, or the mean over corruptions and severities; null for clean images alone."""
    attacks: list[AttackView]
    corruptions: list[CorruptionOutcome]
    mean_corruption_error: float | None
    """mCE; for ImageNet relative to AlexNet's errors in arXiv 1903.12261."""
    robustbench_mean_corruption_error: float | None
    """mCE as RobustBench has it, relative to the errors of its own AlexNet; null but for ImageNet."""
    unreliable: bool
    """Whether there is a flag."""
    flags: list[Flag]
    checks: list[CheckOutcome]
    """What was checked of the network itself and what could not be; empty for older measurements."""
    checks_seed: int | None
    """Seed of the points that the checks looked at."""
    certificate_sha256: str | None
    """Of the file at /api/v1/evaluations/{id}/certificate."""
    seconds: float
    created_at: datetime
    manifest: dict[str, Any]
    """Spec, commit, package versions, device, seed and the sha256 of data and weights."""


class ModelView(Schema):
    id: int
    name: str
    dataset: str
    architecture: str
    loss: str | None
    weights_sha256: str
    """Of the file of weights."""
    weights_key: str
    """Which network of the file it is, where that holds several; else empty."""
    train_job_id: int | None
    created_at: datetime


class PointView(Schema):
    index: int
    """Its place among the test images."""
    label: int
    prediction: int
    """The class of the clean image."""
    broken_by: str | None
    """The attack that broke it; null if it stands, or was misclassified without one."""
    adversarial_prediction: int | None
    """The class of its adversarial example; -1 where the model answered NaN."""
    perturbation_norm: float | None
    """Distance of that example, in units of the pixel range."""


class TakenFor(Schema):
    label: int
    name: str
    count: int


class ClassView(Schema):
    """The test images of one class."""

    label: int
    name: str
    points: int
    clean: float
    """Share that is classified correctly."""
    robust: float
    """Share that withstands every attack."""
    taken_for: list[TakenFor]
    """As what the adversarial examples of the class are classified, the most frequent first."""
