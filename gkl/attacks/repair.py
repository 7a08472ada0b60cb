"""The repair attack: projected gradient ascent on a network whose backward pass was mended.

Forged weights leave a network's answers as they are and spoil what an attack learns from them: gradients overflow,
logits move in steps wider than the attack's own. In float64, on standardized logits, and with the spoilt parts of the
backward pass cut out, the same network is attacked as an honest one would be. What it finds counts only if the network
itself, in its own format, is fooled by it.

Float64 is slow where it is not needed. Points at which the network's own format gives the same margin and the same
mended gradient are attacked in it; where the formats disagree at a run's start or end, in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gkl.attacks.classifier import Classifier, gradient_or_zero, margin_and_gradient
from gkl.attacks.perturbation import dual_norm, into_ball, is_allowed, noise_at_the_border, unit
from gkl.catalog import Norm
from gkl.spec import ThreatModel

STEPS = 40
TARGETS = 4
# A network that this breaks though gradients did not is worth a second, longer look.
_LONGER_STEPS, _MORE_TARGETS = 100, 9
_SUSPICIOUS_POINTS, _SUSPICIOUS_SHARE = 1, 0.01
# The network's own format serves where its margin, in standard deviations of the logits, and its gradient's direction
# are those of float64.
_SAME_MARGIN, _SAME_DIRECTION = 0.01, 0.9
_TINY = torch.finfo(torch.float64).tiny
_MOMENTUM = 0.75
# Classes among which the nearest are looked for.
_CANDIDATES = 29
_COMPANIONS, _FEWEST_COMPANIONS = 16, 4
# Share of the pixels that a step in L1 moves.
_L1_SHARE = 0.05
_FORWARD, _WITH_BACKWARD = 1, 3


def cost(num_classes: int) -> int:
    """Forward passes that a point is worth which the attack does not break; a backward pass counts as two."""
    targets = min(TARGETS, num_classes - 1)
    runs = (1 + targets) * (STEPS * _WITH_BACKWARD + _FORWARD)
    in_both_formats = (2 + targets) * 2 * _WITH_BACKWARD
    return runs + in_both_formats + _FORWARD + 2 * min(_CANDIDATES, num_classes - 1)


def calls(num_classes: int) -> int:
    """Calls of the network that an attack makes on a block which it does not break."""
    return (1 + min(TARGETS, num_classes - 1)) * (STEPS + 3) + 4


def is_suspicious(broken: int, points: int) -> bool:
    """Whether so many points broken of those that gradient attacks had left are a reason for a longer look."""
    return broken > max(_SUSPICIOUS_POINTS, _SUSPICIOUS_SHARE * points)


def perturb(
    own: Classifier,
    precise: Classifier,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    generator: torch.Generator,
    longer: bool = False,
) -> Tensor:
    """Images (B, *) for x (B, *) in [0, 1], each one that fools `own` if any was found, inside ball and box.

    One run against whichever other class is best at the moment, then one against each of the nearest by the network's
    linearization. A run sees the points that all before it left standing.

    Args:
        own: the network as it is, which alone judges.
        precise: the same network in float64.
        x: clean images.
        y: their labels (B,).
        threat_model: ball.
        generator: on the CPU; draws companions and starts.
        longer: take more steps against more classes, as `is_suspicious` advises.

    Raises:
        InvalidInput: the network gives no answer in float64.
    """
    mended = _Mended(own, precise, x, threat_model, generator)
    found = x.clone()
    standing = torch.ones_like(y, dtype=torch.bool)
    disagree = ~mended.formats_agree(noise_at_the_border(x, threat_model, generator), y)
    for format_ in (x.dtype, torch.float64):
        # What strays in the first is tried again in the second.
        rows = (standing & (disagree == (format_ == torch.float64))).nonzero().squeeze(1)
        if len(rows):
            result = _attacked(mended, x[rows], y[rows], format_, longer=longer)
            found[rows], standing[rows], disagree[rows] = result.images, result.standing, result.disagree
    return found


@dataclass(frozen=True)
class _Result:
    images: Tensor
    """(B, *) float32: for each point one that fools the network, or the clean one."""
    standing: Tensor
    """(B,) bool: which have none."""
    disagree: Tensor
    """(B,) bool: where the formats did at the end of a run."""


def _attacked(mended: _Mended, x: Tensor, y: Tensor, format_: torch.dtype, *, longer: bool) -> _Result:
    found, disagree = x.clone(), torch.zeros_like(y, dtype=torch.bool)
    standing = torch.arange(len(x), device=x.device)
    nearest = _nearest_classes(mended, x.to(format_), y)
    steps, most_targets = (_LONGER_STEPS, _MORE_TARGETS) if longer else (STEPS, TARGETS)
    for column in range(-1, min(most_targets, nearest.shape[1])):
        target = None if column < 0 else nearest[standing, column]
        at = _ascended(mended, x[standing].to(format_), y[standing], target, steps=steps)
        candidate = at.to(x.dtype).clamp(0, 1)
        is_fooled = mended.own.predict(candidate) != y[standing]
        is_fooled &= is_allowed(candidate, x[standing], mended.threat_model)[0]
        found[standing[is_fooled]] = candidate[is_fooled]
        standing = standing[~is_fooled]
        if len(standing) == 0:
            break
        if format_ != torch.float64:
            disagree[standing] |= ~mended.formats_agree(candidate[~is_fooled], y[standing])
    stands = torch.zeros_like(disagree)
    stands[standing] = True
    return _Result(found, stands, disagree)


class _Mended:
    """A network whose backward pass loses what is not finite and what flows through constant units.

    A unit whose value is the same for all images of a block and for noise around them carries no information about an
    image. One pass over both finds such units. Their gradient can only be a lie, or zero.
    """

    def __init__(
        self,
        own: Classifier,
        precise: Classifier,
        x: Tensor,
        threat_model: ThreatModel,
        generator: torch.Generator,
    ) -> None:
        self.own, self.precise, self.threat_model, self.generator = own, precise, threat_model, generator
        # Few for a few images, so that a device that holds few images at once is asked for little more.
        companions = min(_COMPANIONS, len(x) + _FEWEST_COMPANIONS)
        around = x[torch.arange(companions, device=x.device) % len(x)]
        noisy = noise_at_the_border(around, threat_model, generator)
        looked_at = torch.cat([x, noisy]).double().requires_grad_(True)
        recorder = _Recorder(len(looked_at))
        with torch.enable_grad(), recorder:
            precise(looked_at)
        self.constant = recorder.constant

    def __call__(self, at: Tensor) -> Tensor:
        """Standardized logits (B, C) for images (B, *) whose gradient is wanted: in float64 if those are float64."""
        with torch.enable_grad(), _Mender(self.constant, len(at)):
            logits = self.precise(at) if at.dtype == torch.float64 else self.own(at)
        return _standardized(logits)

    def formats_agree(self, x: Tensor, y: Tensor) -> Tensor:
        """Where margin and gradient in the network's own format are those in float64: (B, *), (B,) -> (B,) bool."""
        exact, exact_gradient, other = margin_and_gradient(self, x.double(), y)
        seen, gradient, _ = margin_and_gradient(self, x, y, other)
        flat = exact_gradient.flatten(1), gradient.double().flatten(1)
        cosine = torch.nn.functional.cosine_similarity(flat[0], flat[1], eps=_TINY)
        # NaN compares false: it never agrees.
        same: Tensor = ((exact - seen).abs() < _SAME_MARGIN) & (cosine > _SAME_DIRECTION)
        return same


class _OfEveryOperation(TorchFunctionMode, ABC):
    """Sees each tensor that an operation gives and through which a gradient will flow back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if func is Tensor.to:
            # A change of format does nothing in one of the copies and something in the other.
            return given
        for tensor in given if isinstance(given, tuple | list) else (given,):
            if isinstance(tensor, Tensor) and tensor.requires_grad and tensor.grad_fn is not None:
                self.look(tensor)
        return given

    @abstractmethod
    def look(self, tensor: Tensor) -> None: ...


class _Recorder(_OfEveryOperation):
    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.constant: list[Tensor | None] = []
        """For each operation, which units of an image never change; None if none, or if it has no images."""

    @torch.no_grad()
    def look(self, tensor: Tensor) -> None:
        constant = None
        if tensor.dim() > 0 and len(tensor) == self.batch:
            constant = (tensor == tensor[:1]).all(0) | ~tensor.isfinite().all(0)
            constant = constant if constant.any() else None
        self.constant.append(constant)


class _Mender(_OfEveryOperation):
    def __init__(self, constant: list[Tensor | None], batch: int) -> None:
        super().__init__()
        self.constant, self.batch, self.position = constant, batch, 0

    def look(self, tensor: Tensor) -> None:
        # A network that does other operations for other images has no record of them.
        constant = self.constant[self.position] if self.position < len(self.constant) else None
        self.position += 1
        fits = constant is not None and len(tensor) == self.batch and tensor.shape[1:] == constant.shape
        masked = constant if fits else None

        def mended(gradient: Tensor) -> Tensor:
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            return gradient if masked is None else gradient.masked_fill(masked, 0)

        tensor.register_hook(mended)


def _standardized(logits: Tensor) -> Tensor:
    """Without mean and scale of each row (B, C): what is left says which class wins, and by how much."""
    shifted = logits - logits.mean(1, keepdim=True)
    tiny = torch.finfo(logits.dtype).tiny
    # Scaled first: squares of logits near either end of the format would overflow or vanish.
    shifted = shifted / shifted.detach().abs().amax(1, keepdim=True).clamp_min(tiny)
    # No gradient of the scale: two standardized logits are -1 and 1 whatever the image.
    return shifted / shifted.detach().std(1, correction=0, keepdim=True).clamp_min(tiny)


def _nearest_classes(mended: _Mended, x: Tensor, y: Tensor) -> Tensor:
    """(B, T): the few other classes whose border the linearization has nearest, the nearest first.

    By logits alone, decoys just under the best class would take all places.
    """
    at = x.detach().requires_grad_(True)
    logits = mended(at)
    others = logits.detach().nan_to_num().scatter(1, y[:, None], -torch.inf)
    likely = others.topk(min(_CANDIDATES, logits.shape[1] - 1), dim=1).indices
    margins = logits.gather(1, y[:, None]) - logits.gather(1, likely)
    columns = []
    for column in range(likely.shape[1]):
        gradient = gradient_or_zero(margins[:, column].sum(), at)
        columns.append(margins[:, column].detach() / dual_norm(gradient, mended.threat_model.norm))
    distances = torch.stack(columns, 1).nan_to_num(nan=torch.inf, posinf=torch.inf)
    nearest = distances.argsort(dim=1, stable=True)[:, :_MORE_TARGETS]
    return likely.gather(1, nearest)


def _ascended(
    mended: _Mended,
    x: Tensor,
    y: Tensor,
    target: Tensor | None,
    *,
    steps: int,
) -> Tensor:
    """The images (B, *) inside ball and box, in the format of x, that were furthest on the wrong side."""
    threat_model, epsilon, norm = mended.threat_model, mended.threat_model.epsilon, mended.threat_model.norm
    at = x
    if target is not None:
        noise = noise_at_the_border(x, threat_model, mended.generator) - x
        at = x + noise * torch.rand((), generator=mended.generator).to(x)
    best, most = at, torch.full_like(y, -torch.inf, dtype=x.dtype)
    velocity = torch.zeros_like(x)
    rows = torch.arange(len(x), device=x.device)
    for step in range(steps):
        at = at.detach().requires_grad_(True)
        logits = mended(at)
        other = logits.detach().nan_to_num().scatter(1, y[:, None], -torch.inf).argmax(1)
        label = logits[rows, y]
        wrong_by = (logits[rows, other] - label).detach().nan_to_num(nan=-torch.inf)
        best = torch.where(_per_image(wrong_by > most, x), at.detach(), best)
        most = torch.maximum(most, wrong_by)
        # Its own word, not the copy's: answers that move in steps need more than to be just across the border.
        if (most > 0).all() and (mended.own.predict(best.float()) != y).all():
            break
        loss = logits[rows, other if target is None else target] - label
        gradient = gradient_or_zero(loss.sum(), at).nan_to_num(0.0, 0.0, 0.0)
        with torch.no_grad():
            size = dual_norm(gradient, norm).clamp_min(torch.finfo(x.dtype).tiny)
            velocity = _MOMENTUM * velocity + gradient / _per_image(size, x)
            length = epsilon * (1 + math.cos(math.pi * step / steps))
            at = into_ball(at + length * _step(velocity, at, norm), x, threat_model)
    return best


def _step(velocity: Tensor, at: Tensor, norm: Norm) -> Tensor:
    if norm == "L1":
        # The steepest step in L1 moves one pixel; a few are nearly as steep and do not take thousands of steps.
        movable = torch.where(velocity > 0, at < 1, at > 0)
        flat = (velocity.abs() * movable).flatten(1)
        chosen = flat.topk(max(1, int(_L1_SHARE * flat.shape[1])), dim=1).indices
        kept = torch.zeros_like(flat).scatter(1, chosen, 1.0).reshape(velocity.shape)
        return unit((velocity.sign() * movable) * kept, "L1")
    return unit(velocity, norm)


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *([1] * (x.dim() - 1)))
