"""Classifiers whose robustness is known, and ones that would mislead an evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkl.data import ImageSet


class TwoSided(nn.Module):
    """`classes` logits of which two depend on the image: +-w x. A point is robust iff |w x| > epsilon * |w|_dual."""

    def __init__(self, weight: Tensor, classes: int = 10) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1) - 0.5) @ self.weight
        others = [-100.0 - 0.01 * k - 0.001 * score for k in range(self.classes - 2)]
        return torch.stack([score, -score, *others], dim=1)


def two_sided_problem(classes: int = 10, points: int = 60) -> tuple[TwoSided, ImageSet, Tensor]:
    """The model, images it gets right, with room for a small ball on all sides, and |w x| of each."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, generator=generator)
    images = 0.2 + 0.6 * torch.rand(points, 1, 8, 8, generator=generator)
    score = (images.flatten(1) - 0.5) @ weight
    return TwoSided(weight, classes), ImageSet(images, (score < 0).long()), score.abs()


class Around(nn.Module):
    """A base for models that do something to another one's input or output."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Quantized(Around):
    """Sees its input in few grey levels: no gradient passes, and small steps change nothing."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner((x * 8).round() / 8)
        return logits


class Noisy(Around):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x + 0.05 * torch.randn_like(x))
        return logits


class NoisyOffGrid(Around):
    """Noisy only where a pixel is none that an 8-bit image of these digits can have."""

    def forward(self, x: Tensor) -> Tensor:
        off = ((x * 16).frac().flatten(1).amax(1) > 0).float()[:, None]
        logits: Tensor = self.inner(x)
        return logits + off * torch.randn_like(logits)


class Softmax(Around):
    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.inner(x), dim=1)


class LogSoftmax(Around):
    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.inner(x), dim=1)


class Purifying(Around):
    """Moves its input along a gradient before it answers."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            moved = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.inner(moved).logsumexp(1).sum(), moved)
        logits: Tensor = self.inner(x + 0.01 * gradient)
        return logits


class Detached(Around):
    """Its answer is numbers alone."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x).detach()
        return logits


class BatchCentered(Around):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x - x.mean(0) + 0.5)
        return logits


class StubbornDropout(Around):
    """Goes back to training mode whenever it is asked."""

    def forward(self, x: Tensor) -> Tensor:
        self.train()
        logits: Tensor = self.inner(x)
        return logits


class NanNear(Around):
    """Answers NaN to everything but clean digits, whose pixels are sixteenths."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        off = (((x * 16) - (x * 16).round()).abs().flatten(1).amax(1) > 1e-3)[:, None]
        return logits.masked_fill(off, float("nan"))
