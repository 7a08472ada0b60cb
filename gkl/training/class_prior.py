"""The class prior of the IKL and GKL losses: for each class, the mean prediction over the images of that class.

Row y of the prior holds the class weights of a sample with label y in both losses. The prior is accumulated during an
epoch and used in the next one (arXiv 2305.13948, section on inserting class-wise global information).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


class ClassPrior:
    """Mean softmax per class, a (C, C) float32 tensor whose rows sum to 1; uniform in the first epoch.

    If an epoch has no sample of a class, the class keeps its old row.
    """

    def __init__(self, num_classes: int, *, temperature: float, device: torch.device) -> None:
        """
        Args:
            num_classes: C.
            temperature: the logits are divided by it before the softmax.
            device: where the tensors are kept.
        """
        self.temperature = temperature
        self.rows = torch.full((num_classes, num_classes), 1.0 / num_classes, device=device)
        self._sums = torch.zeros(num_classes, num_classes, device=device)
        self._counts = torch.zeros(num_classes, device=device)

    def of(self, labels: Tensor) -> Tensor:
        """Return the prior's row of each label: (B,) int64 -> (B, C)."""
        return self.rows[labels]

    @torch.no_grad()
    def accumulate(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch of natural (or teacher) logits, (B, C), and their labels, (B,)."""
        probabilities = F.softmax(logits.detach().float() / self.temperature, dim=1)
        self._sums.index_add_(0, labels, probabilities)
        self._counts.index_add_(0, labels, torch.ones_like(labels, dtype=self._counts.dtype))

    @torch.no_grad()
    def finish_epoch(self) -> None:
        """Use the accumulated means from now on, and start accumulating anew."""
        seen = self._counts > 0
        self.rows[seen] = self._sums[seen] / self._counts[seen, None]
        self._sums.zero_()
        self._counts.zero_()

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint must hold: the rows in use, and the running epoch's sums and counts."""
        return {"rows": self.rows, "sums": self._sums, "counts": self._counts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
