"""What a training reports of its steps and epochs, and what it leaves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gkl.outcome.common import Manifest, Record


class TrainOutcome(Record):
    type: Literal["trained"] = "trained"
    weights: str
    """File name of the weights, relative to the run's directory."""
    epochs: int
    selected_epoch: int | None = None
    """The epoch whose weights these are, where the spec has a selection."""
    held_out_clean_accuracy: float | None = None
    """Its accuracy on the held-out training images."""
    held_out_robust_accuracy: float | None = None
    """Its accuracy on them under PGD."""
    seconds: float
    """Training time of the whole run, resumed parts included."""
    manifest: Manifest


class StepMetrics(Record):
    """The latest training step."""

    step: int
    """Steps done, of `steps`, in the whole run."""
    steps: int
    loss: float
    parts: dict[str, float]
    """The loss's parts before their weights: 'natural', and 'kl', 'dkl', or 'ce' and 'wmse'."""
    clean_accuracy: float
    """Accuracy on the batch's natural images."""
    adversarial_accuracy: float
    """Accuracy on the batch's adversarial images."""
    images_per_second: float | None = None
    """Natural images trained on per second, since the report before; null in the first."""


class EpochFinished(Record):
    """One point of the training curve; accuracies are means over the epoch's training batches."""

    type: Literal["epoch"] = "epoch"
    epoch: int
    epochs: int
    loss: float
    clean_accuracy: float
    adversarial_accuracy: float
    """Accuracy on the adversarial images of the inner maximization."""
    epsilon: float
    learning_rate: float
    """That of the epoch's last step."""
    seconds: float
    parts: dict[str, float] = Field(default_factory=dict)
    """Means of the loss's parts before their weights."""
    held_out_clean_accuracy: float | None = None
    """Accuracy on the held-out training images, where the spec has a selection and this epoch was measured."""
    held_out_robust_accuracy: float | None = None
    """Accuracy on them under PGD; the epoch with the highest is the result."""
