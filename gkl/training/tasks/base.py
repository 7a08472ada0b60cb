"""What every task has: a step, what it reports, what it keeps, how it measures held-out images."""

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
    """What a step measured on its batch, second views included."""

    images: int
    sums: dict[str, float]
    """By the metric's name in `gkl.outcome.metrics`, summed over the images: of an accuracy the number of those
    classified correctly. Sums stay exact where means would be rounded."""

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the images."""
        return {name: total / self.images for name, total in self.sums.items()}


@dataclass(frozen=True)
class Objective:
    """What one forward pass gives."""

    total: Tensor
    """The scalar to minimize."""
    parts: dict[str, Tensor]
    """Its parts before their weights, by the name that follows 'loss_' in the metric's."""
    correct: dict[str, Tensor]
    """By the name of an accuracy, how many images were classified correctly."""


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
    """What is minimized, what is kept for it between steps, and what is reported of it.

    The trainer owns epochs, order of the batches, schedules, averaging, checkpoints and progress. It knows a task by
    this class alone.
    """

    selects_by: ClassVar[str]
    """Name of the held-out metric whose highest value selects an epoch."""
    held_out_described: ClassVar[str]
    """The held-out images as they are measured, in words: 'held-out images under PGD'."""

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
        """What is the same for all steps of an epoch, such as its epsilon."""
        return {}

    @abstractmethod
    def measure_held_out(
        self, network: Network, images: Tensor, labels: Tensor, *, batch_done: Callable[[int], None]
    ) -> dict[str, float]:
        """The held-out metrics of a network, which is put in eval mode. Draws nothing from the task's generator.

        Args:
            network: the result of the training so far, which may be an average.
            images: (N, C, H, W), uint8, or float32 in [0, 1], on the device to compute on.
            labels: (N,) int64, there too.
            batch_done: called with the number of images done after each batch; an error that it raises ends this.
        """

    def state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint must hold besides weights and optimizer, by names of the task's own."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - most tasks keep nothing
        """Put back what `state` gave."""

    def _update(self, evaluate: Callable[[], Objective], images: int, *, where: str) -> StepOutcome:
        """One step of the optimizer down the gradient of what `evaluate` computes."""
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
    """The sums, and the loss."""
    scalars = [objective.total, *objective.parts.values(), *objective.correct.values()]
    # Together, so that the device is waited for once.
    loss, *rest = torch.stack([scalar.detach().double() for scalar in scalars]).tolist()
    means, counts = rest[: len(objective.parts)], rest[len(objective.parts) :]
    sums = {"loss": loss * images}
    sums |= {f"loss_{name}": mean * images for name, mean in zip(objective.parts, means, strict=True)}
    sums |= dict(zip(objective.correct, counts, strict=True))
    return StepOutcome(images, sums), loss
