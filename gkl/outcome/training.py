"""What a training reports about its steps and epochs, and its outcome."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from gkl.outcome.common import Manifest, Record


class TeacherOutcome(Record):
    """The network that a student learned from."""

    architecture: str
    weights_sha256: str
    weights_key: str | None = None
    """Which network of the file it is, where the file holds several."""
    clean_accuracy: float
    """Its accuracy on the data set's test images."""
    num_points: int
    """The number of those images."""


class LongTailAccuracy(Record):
    """Accuracy on the clean test images of a training with an imbalance, in [0, 1].

    A group's accuracy is the mean over its classes. Classes without a test image are in no group.
    """

    top1: float
    """Over all test images."""
    many: float | None = None
    """Mean over the classes with more than 100 training images; null if there are none."""
    medium: float | None = None
    """Mean over the classes with 20 to 100 training images; null if there are none."""
    few: float | None = None
    """Mean over the classes with fewer than 20 training images; null if there are none."""


class TrainOutcome(Record):
    type: Literal["trained"] = "trained"
    weights: str
    """File name of the weights, relative to the run's directory."""
    epochs: int
    selected_epoch: int | None = None
    """The epoch whose weights these are, where the spec has a selection."""
    held_out_clean_accuracy: float | None = None
    """The selected epoch's accuracy on the held-out training images."""
    held_out_robust_accuracy: float | None = None
    """The selected epoch's accuracy on these images under PGD; null if the training has no adversary."""
    teacher: TeacherOutcome | None = None
    """The network that a distillation's student learned from."""
    class_counts: tuple[int, ...] | None = None
    """Training images of each class, held-out ones not counted, where the spec has an imbalance."""
    test_accuracy: LongTailAccuracy | None = None
    """The result's accuracy on the test images, where the spec has an imbalance."""
    seconds: float
    """Training time of the whole run, including the time before interruptions."""
    manifest: Manifest


# Metrics that earlier versions stored as separate fields, with the parts of the loss in a field 'parts'.
_ONCE_FIELDS = (
    *("loss", "clean_accuracy", "adversarial_accuracy", "held_out_clean_accuracy", "held_out_robust_accuracy"),
    *("epsilon", "learning_rate"),
)


class _Measured(Record):
    """Base class of records with metrics; properties return the usual ones."""

    metrics: dict[str, float]
    """Values by the metrics' names; `gkl.outcome.metrics` has their titles, units and direction."""

    @model_validator(mode="before")
    @classmethod
    def _from_earlier_version(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "metrics" in data:
            return data
        rest = {name: value for name, value in data.items() if name not in (*_ONCE_FIELDS, "parts")}
        found = {name: data[name] for name in _ONCE_FIELDS if data.get(name) is not None}
        found |= {f"loss_{name}": value for name, value in (data.get("parts") or {}).items()}
        return rest | {"metrics": found} if found else data

    @property
    def loss(self) -> float:
        """What the training minimizes."""
        return self.metrics["loss"]

    @property
    def parts(self) -> dict[str, float]:
        """The loss's parts before their weights: 'natural', and 'kl', 'dkl', or 'ce' and 'wmse'."""
        return {name.removeprefix("loss_"): value for name, value in self.metrics.items() if name.startswith("loss_")}

    @property
    def clean_accuracy(self) -> float:
        """Accuracy on clean training images."""
        return self.metrics["clean_accuracy"]

    @property
    def adversarial_accuracy(self) -> float | None:
        """Accuracy on the adversarial images of the inner maximization; None without an adversary."""
        return self.metrics.get("adversarial_accuracy")


class StepMetrics(_Measured):
    """The latest training step; its accuracies are measured on its batch."""

    step: int
    """Steps done, of `steps`, in the whole run."""
    steps: int
    images_per_second: float | None = None
    """Natural images per second since the previous report; null in the first report."""


class EpochFinished(_Measured):
    """One point of the training curve; losses and accuracies are means over the epoch's training batches."""

    type: Literal["epoch"] = "epoch"
    epoch: int
    epochs: int
    seconds: float

    @property
    def epsilon(self) -> float | None:
        """Radius of the adversary's perturbations; None without an adversary."""
        return self.metrics.get("epsilon")

    @property
    def learning_rate(self) -> float:
        """Learning rate of the epoch's last step."""
        return self.metrics["learning_rate"]

    @property
    def held_out_clean_accuracy(self) -> float | None:
        """Accuracy on the held-out training images, where the spec has a selection and this epoch was measured."""
        return self.metrics.get("held_out_clean_accuracy")

    @property
    def held_out_robust_accuracy(self) -> float | None:
        """Accuracy on these images under PGD; the weights of the epoch with the highest one are the result."""
        return self.metrics.get("held_out_robust_accuracy")
