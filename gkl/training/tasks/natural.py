"""Plain training: cross-entropy on clean images, without an adversary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gkl.data import unit_range
from gkl.training.network import Network
from gkl.training.tasks.base import Batch, Objective, StepOutcome, Task


class NaturalTask(Task):
    """Minimizes cross-entropy with the spec's label smoothing. If a batch has two views, it is the mean over both."""

    selects_by = "held_out_clean_accuracy"
    held_out_described = "held-out images"

    def _minimized(self, batch: Batch, *, epoch: int) -> Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]:
        """What the step minimizes: a function from the logits (B, C) to the scalar and its parts. Called once for each
        batch."""
        return lambda logits: (self._cross_entropy(logits, batch.labels), {})

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.spec.label_smoothing)

    def _step(self, batch: Batch, *, epoch: int, where: str) -> StepOutcome:
        loss = self._minimized(batch, epoch=epoch)

        def evaluated() -> Objective:
            logits = self.network(batch.x)
            total, parts = loss(logits)
            return Objective(total, parts, {"clean_accuracy": (logits.detach().argmax(1) == batch.labels).sum()})

        self.model.train()
        return self._update(evaluated, len(batch.labels), where=where)

    def measure_held_out(
        self, network: Network, images: Tensor, labels: Tensor, *, batch_done: Callable[[int], None]
    ) -> dict[str, float]:
        network.model.eval()
        correct = done = 0
        for stored, y in zip(images.split(self.spec.batch_size), labels.split(self.spec.batch_size), strict=True):
            with torch.no_grad():
                correct += int((network(unit_range(stored)).argmax(1) == y).sum())
            done += len(y)
            batch_done(done)
        return {"held_out_clean_accuracy": correct / len(labels)}
