"""The repair attack: projected gradient ascent on a network whose backward pass was mended.

Forged weights leave a network's answers as they are and spoil what an attack learns from them: gradients overflow,
logits move in steps wider than the attack's own. In float64, on standardized logits, and with the spoilt parts of the
backward pass cut out, the same network is attacked as an honest one would be. What it finds counts only if the network
itself, in its own format, is fooled by it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gkl.catalog import Norm
from gkl.evaluation.checks import noise_at_the_border
from gkl.evaluation.classifier import Classifier
from gkl.evaluation.perturbation import dual_norm, into_ball, is_allowed, unit
from gkl.spec import ThreatModel

STEPS = 40
TARGETS = 4
# A network that this breaks though gradients did not is worth a second, longer look.
_LONGER_STEPS, _MORE_TARGETS = 100, 9
_SUSPICIOUS_POINTS, _SUSPICIOUS_SHARE = 1, 0.01
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
    return runs + _FORWARD + 2 * min(_CANDIDATES, num_classes - 1)


def calls(num_classes: int) -> int:
    """Calls of the network that an attack makes on a block which it does not break."""
    return (1 + min(TARGETS, num_classes - 1)) * (STEPS + 1) + 2


def perturb(
    own: Classifier,
    precise: Classifier,
    x: Tensor,
    y: Tensor,
    threat_model: ThreatModel,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Images (B, *) for x (B, *) in [0, 1], each one that fools `own` if any was found, inside ball and box.

    One run against whichever other class is best at the moment, then one against each of the nearest by the network's
    linearization. A run sees the points that all before it left standing. Where they break more than one point and more
    than one in a hundred, all are run once more, longer and against more classes.

    Args:
        own: the network as it is, which alone judges.
        precise: the same network in float64, whose mended gradients are followed.
        x: clean images.
        y: their labels (B,).
        threat_model: ball.
        generator: on the CPU; draws companions and starts.

    Raises:
        InvalidInput: the network gives no answer, or no gradient, in float64.
    """
    found = x.clone()
    mended = _Mended(precise, x, threat_model, generator)
    nearest = _nearest_classes(mended, x, y)
    standing = torch.arange(len(x), device=x.device)
    for steps, num_targets in ((STEPS, TARGETS), (_LONGER_STEPS, _MORE_TARGETS)):
        for column in range(-1, min(num_targets, nearest.shape[1])):
            target = None if column < 0 else nearest[standing, column]
            at = _ascended(own, mended, x[standing], y[standing], target, steps=steps)
            candidate = at.to(x.dtype).clamp(0, 1)
            is_fooled = own.predict(candidate) != y[standing]
            is_fooled &= is_allowed(candidate, x[standing], threat_model)[0]
            found[standing[is_fooled]] = candidate[is_fooled]
            standing = standing[~is_fooled]
            if len(standing) == 0:
                return found
        if len(x) - len(standing) <= max(_SUSPICIOUS_POINTS, _SUSPICIOUS_SHARE * len(x)):
            break
    return found


class _Mended:
    """A network in float64 whose backward pass loses what is not finite and what flows through constant units.

    A unit whose value is the same for all images of a block and for noise around them tells nothing of an image; it is
    found once, by a pass over both. Its gradient can only be a lie, or zero.
    """

    def __init__(self, precise: Classifier, x: Tensor, threat_model: ThreatModel, generator: torch.Generator) -> None:
        self.precise, self.threat_model, self.generator = precise, threat_model, generator
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
        """Standardized logits (B, C) for images (B, *) whose gradient is wanted."""
        with torch.enable_grad(), _Mender(self.constant, len(at)):
            logits = self.precise(at)
        return _standardized(logits)


class _OfEveryOperation(TorchFunctionMode):
    """Sees each tensor that an operation gives and through which a gradient will flow back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        for tensor in given if isinstance(given, tuple | list) else (given,):
            if isinstance(tensor, Tensor) and tensor.requires_grad and tensor.grad_fn is not None:
                self.look(tensor)
        return given

    def look(self, tensor: Tensor) -> None:
        raise NotImplementedError


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
    return shifted / shifted.std(1, correction=0, keepdim=True).clamp_min(tiny)


def _nearest_classes(mended: _Mended, x: Tensor, y: Tensor) -> Tensor:
    """(B, T): the few other classes whose border the linearization has nearest, the nearest first.

    By logits alone, decoys just under the best class would take all places.
    """
    at = x.double().requires_grad_(True)
    logits = mended(at)
    others = logits.detach().nan_to_num().scatter(1, y[:, None], -torch.inf)
    likely = others.topk(min(_CANDIDATES, logits.shape[1] - 1), dim=1).indices
    margins = logits.gather(1, y[:, None]) - logits.gather(1, likely)
    columns = []
    for column in range(likely.shape[1]):
        (gradient,) = torch.autograd.grad(margins[:, column].sum(), at, retain_graph=True)
        columns.append(margins[:, column].detach() / dual_norm(gradient, mended.threat_model.norm))
    distances = torch.stack(columns, 1).nan_to_num(nan=torch.inf, posinf=torch.inf)
    nearest = distances.argsort(dim=1, stable=True)[:, :_MORE_TARGETS]
    return likely.gather(1, nearest)


def _ascended(
    own: Classifier,
    mended: _Mended,
    x: Tensor,
    y: Tensor,
    target: Tensor | None,
    *,
    steps: int,
) -> Tensor:
    """The images (B, *) float64 inside ball and box that were furthest on the wrong side."""
    x = x.double()
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
        if (most > 0).all() and (own.predict(best.float()) != y).all():
            break
        loss = logits[rows, other if target is None else target] - label
        (gradient,) = torch.autograd.grad(loss.sum(), at)
        with torch.no_grad():
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
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
