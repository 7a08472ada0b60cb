"""The base class of all tasks: training step, metrics, saved state, and the measurement on held-out images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gkl.data import unit_range
from gkl.device import own_random_stream
from gkl.errors import NonFiniteLoss
from gkl.spec import BaseTrainSpec
from gkl.training.network import Network


@dataclass(frozen=True)
class StepOutcome:
    """The metrics of a step's batch, including second views."""

    images: int
    sums: dict[str, float]
    """Name of the metric in `gkl.outcome.metrics` -> its sum over the images; for an accuracy, the number of correctly
    classified images. Sums, since adding up rounded means would be less exact."""

    @property
    def metrics(self) -> dict[str, float]:
        """The metric's name -> its mean over the images."""
        return {name: total / self.images for name, total in self.sums.items()}


@dataclass(frozen=True)
class Objective:
    """The objective's value on a batch, and the number of correctly classified images."""

    total: Tensor
    """The scalar to minimize."""
    parts: dict[str, Tensor]
    """Its parts before they are multiplied by their weights. The part 'kl' is reported as the metric 'loss_kl'."""
    correct: dict[str, Tensor]
    """Name of an accuracy, such as 'clean_accuracy' -> how many images were classified correctly."""


@dataclass(frozen=True)
class Batch:
    """A batch as a step sees it."""

    x: Tensor
    """(B, C, H, W) in [0, 1]; of two views, all first views and then all second ones."""
    labels: Tensor
    """(B,) int64."""
    own: int
    """How many of them are first views."""
    rows: Tensor | None = None
    """(B,) int64, which training images these are; None where they were augmented or generated."""

    @classmethod
    def of(cls, views: tuple[Tensor, ...], labels: Tensor, rows: Tensor | None = None) -> Batch:
        """
        Args:
            views: one or two views of the batch, each (B, C, H, W), uint8, or float32 in [0, 1].
            labels: (B,) int64.
            rows: as in the batch.
        """
        x = unit_range(torch.cat(views) if len(views) > 1 else views[0])
        return cls(x, labels.repeat(len(views)), len(views[0]), rows)


class Task(ABC):
    """One way of training: its step, the tensors that it keeps between steps, and its metrics.

    The trainer handles epochs, order of the batches, schedules, averaging, checkpoints and progress. It uses a task
    only through the methods of this class.
    """

    selects_by: ClassVar[str]
    """Name of the held-out metric by which the best epoch is selected; higher is better."""
    held_out_described: ClassVar[str]
    """What is measured on, for progress messages: 'held-out images under PGD'."""

    def __init__(
        self, spec: BaseTrainSpec, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        self.spec, self.model, self.optimizer, self.generator = spec, model, optimizer, generator
        self.network = Network(model, spec.compute, generator.device)

    def __call__(
        self, views: tuple[Tensor, ...], labels: Tensor, *, epoch: int, where: str = "", rows: Tensor | None = None
    ) -> StepOutcome:
        """Update the model once.

        Args:
            views: one or two views of the batch, each (B, C, H, W), uint8, or float32 in [0, 1].
            labels: (B,) int64.
            epoch: counted from 1.
            where: names the step in an error.
            rows: (B,) int64, which training images these are; None where they were augmented or generated.

        Raises:
            NonFiniteLoss: the loss is NaN or infinite; no weight has been changed by this step's gradient.
        """
        # Networks with dropout draw from torch's global stream.
        with own_random_stream(self.generator):
            return self._step(Batch.of(views, labels, rows), epoch=epoch, where=where)

    @abstractmethod
    def _step(self, batch: Batch, *, epoch: int, where: str) -> StepOutcome: ...

    def finish_epoch(self) -> None:  # noqa: B027 - most tasks keep nothing between epochs
        """Called after the last step of each epoch."""

    def epoch_metrics(self, epoch: int) -> dict[str, float]:
        """Return the metrics that are the same for all steps of an epoch, such as its epsilon."""
        return {}

    @abstractmethod
    def measure_held_out(
        self, network: Network, images: Tensor, labels: Tensor, *, batch_done: Callable[[int], None]
    ) -> dict[str, float]:
        """Measure a network on the held-out images. Puts it in eval mode; does not use the task's generator.

        Args:
            network: the current result of the training, which may be an average.
            images: (N, C, H, W), uint8, or float32 in [0, 1], on the device to compute on.
            labels: (N,) int64, on the same device.
            batch_done: called after each batch with the number of images done so far; an error that it raises ends the
                measurement.

        Returns:
            Metrics by name, among them `selects_by`.
        """

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint must hold besides weights and optimizer, by their names."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - most tasks keep nothing
        """Load what `state` returned."""

    def _update(self, evaluate: Callable[[], Objective], images: int, *, where: str) -> StepOutcome:
        """Do one optimizer step on the objective that `evaluate` computes.

        Raises:
            NonFiniteLoss: the loss is NaN or infinite; the optimizer step is not done.
        """
        objective = evaluate()
        outcome, loss = _measured(objective, images)
        if not math.isfinite(loss):
            parts = ", ".join(f"{name} {float(part.detach()):.4g}" for name, part in objective.parts.items())
            raise NonFiniteLoss(
                f"the loss became {loss}{f' ({parts})' if parts else ''} {where}; usually the learning rate or a loss "
                "weight is too high, so lower one of them and train again"
            )
        self.optimizer.zero_grad()
        objective.total.backward()
        self.optimizer.step()
        return outcome


def _measured(objective: Objective, images: int) -> tuple[StepOutcome, float]:
    """Return the step's sums and its loss as numbers."""
    scalars = [objective.total, *objective.parts.values(), *objective.correct.values()]
    # Copied from the device in one transfer, since each transfer waits until the device is done.
    loss, *rest = torch.stack([scalar.detach().double() for scalar in scalars]).tolist()
    means, counts = rest[: len(objective.parts)], rest[len(objective.parts) :]
    sums = {"loss": loss * images}
    sums |= {f"loss_{name}": mean * images for name, mean in zip(objective.parts, means, strict=True)}
    sums |= dict(zip(objective.correct, counts, strict=True))
    return StepOutcome(images, sums), loss
