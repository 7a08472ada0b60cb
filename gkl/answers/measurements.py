"""Answers about models and their evaluations."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from gkl.answers.common import Schema
from gkl.outcome import CheckOutcome, CorruptionOutcome, Flag


class AttackView(Schema):
    attack: str
    points: int
    """Points that were attacked: those that survived all earlier attacks."""
    broken: int
    survivors: int
    seconds: float
    discarded: int
    """Misclassified images that the attack returned but that violate the threat model; not counted."""
    loss: str | None
    targets: int | None
    """Number of target classes per point, for a targeted attack."""


class AccuracyView(Schema):
    accuracy: float = Field(ge=0, le=1)
    correct: int | None
    """Number of correct points; null for a mean over corruptions."""
    points: int
    interval: tuple[float, float]
    """95 % Wilson interval."""


class EvaluationView(Schema):
    id: int
    job_id: int
    threat_model: str
    """The board's name, such as 'Linf'."""
    norm: str | None
    epsilon: float | None
    protocol: str
    is_complete: bool
    """Whether all test images were evaluated; otherwise it is not ranked."""
    is_provisional: bool
    """Whether the robust accuracy is an upper bound from the first attacks, while the others run."""
    not_ranked: str | None
    """Why it has no place on a board; null if it has one, or will have one when it is final."""
    clean: AccuracyView
    robust: AccuracyView | None
    """Accuracy under attack, or the mean over corruptions and severities; null for the protocol 'clean'."""
    attacks: list[AttackView]
    corruptions: list[CorruptionOutcome]
    mean_corruption_error: float | None
    """mCE; for ImageNet relative to AlexNet's errors in arXiv 1903.12261."""
    robustbench_mean_corruption_error: float | None
    """mCE as RobustBench computes it, relative to its own AlexNet's errors; null except for ImageNet."""
    unreliable: bool
    """Whether there are flags; for the protocol 'clean', flags that concern clean images."""
    flags: list[Flag]
    """Reasons not to trust the robust accuracy."""
    checks: list[CheckOutcome]
    """Checks of the network itself, including those that were not possible; empty for older evaluations."""
    checks_seed: int | None
    """Seed that chose the points of the checks."""
    certificate_sha256: str | None
    """sha256 of the file at /api/v1/evaluations/{id}/certificate."""
    seconds: float
    created_at: datetime
    manifest: dict[str, Any]
    """Spec, commit, package versions, device, seed and the sha256 of data and weights."""


class TeacherView(Schema):
    """The network that a model learned from."""

    architecture: str
    title: str
    """The architecture's title, as entries show it."""
    weights_sha256: str
    """sha256 of the file of its weights."""
    weights_key: str
    """Which network of the file it is, if the file holds several; otherwise empty."""
    clean: float | None = Field(ge=0, le=1)
    """Its accuracy on the test images, measured when the student's training began."""
    weights_id: int | None
    """The model at /api/v1/models/{id}, if this service knows it."""
    entry_id: int | None
    """Its entry on the board of the student's entry; null if it has none, and in answers about models."""


class ModelView(Schema):
    id: int
    name: str
    dataset: str
    architecture: str
    loss: str | None
    weights_sha256: str
    """sha256 of the file of weights."""
    weights_key: str
    """Which network of the file it is, if the file holds several; otherwise empty."""
    train_job_id: int | None
    created_at: datetime
    teacher: TeacherView | None = None
    """The network that it learned from, if this service distilled it."""


class PointView(Schema):
    index: int
    """Its index among the test images, from 0."""
    label: int
    prediction: int
    """The predicted class of the clean image."""
    broken_by: str | None
    """The attack that broke it; null if it is robust, or if the clean image is misclassified."""
    adversarial_prediction: int | None
    """The predicted class of its adversarial example; -1 if the model returned NaN."""
    perturbation_norm: float | None
    """Norm of the perturbation, in units of the pixel range [0, 1]."""


class TakenFor(Schema):
    """A class, and how many adversarial examples were predicted as it."""

    label: int
    name: str
    count: int


class ClassView(Schema):
    """The test images of one class."""

    label: int
    name: str
    points: int
    clean: float
    """Clean accuracy, in [0, 1]."""
    robust: float
    """Robust accuracy, in [0, 1]."""
    taken_for: list[TakenFor]
    """The predicted classes of the class's adversarial examples, the most frequent first."""
