"""The repair attack: projected gradient ascent on a network whose backward pass was repaired.

Weights can be manipulated so that a network's predictions stay the same and its gradients mislead an attack: gradients
overflow, or logits change in steps wider than the attack's own. The repair attack computes gradients in float64, on
standardized logits, and cuts the faulty parts out of the backward pass. The network is then attacked as an honest one
would be. An image that the attack finds counts only if the network itself, in its own number format, misclassifies it.

Float64 is slow. Points at which the network's own format gives nearly the same margin and repaired gradient as float64
are attacked in the own format; points at which the formats disagree, at the start or the end of a run, in float64.
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
# A second, longer attack follows if the first one breaks many points that gradient attacks did not break.
_LONGER_STEPS, _MORE_TARGETS = 100, 9
_SUSPICIOUS_POINTS, _SUSPICIOUS_SHARE = 1, 0.01
# The network's own format is used where it agrees with float64: the margins differ by less than this, in standard
# deviations of the logits, and the cosine between the gradients is above this.
_SAME_MARGIN, _SAME_DIRECTION = 0.01, 0.9
_TINY = torch.finfo(torch.float64).tiny
_MOMENTUM = 0.75
# The nearest classes are searched among this many classes with the highest logits.
_CANDIDATES = 29
_COMPANIONS, _FEWEST_COMPANIONS = 16, 4
# Share of the pixels that a step in L1 changes.
_L1_SHARE = 0.05
_FORWARD, _WITH_BACKWARD = 1, 3


def cost(num_classes: int) -> int:
    """Forward passes for one point that the attack does not break; a backward pass counts as two."""
    targets = min(TARGETS, num_classes - 1)
    runs = (1 + targets) * (STEPS * _WITH_BACKWARD + _FORWARD)
    in_both_formats = (2 + targets) * 2 * _WITH_BACKWARD
    return runs + in_both_formats + _FORWARD + 2 * min(_CANDIDATES, num_classes - 1)


def calls(num_classes: int) -> int:
    """Calls of the network for one block in which the attack breaks no point."""
    return (1 + min(TARGETS, num_classes - 1)) * (STEPS + 3) + 4


def is_suspicious(broken: int, points: int) -> bool:
    """Whether the attack broke so many of the points that gradient attacks had left that a longer one should follow."""
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
    """Search adversarial examples inside ball and box: (B, *) -> (B, *), with the clean image where none was found.

    The first run is untargeted: each step moves towards the best class besides the label. Each further run targets one
    of the nearest classes, by a linearization of the network. A run attacks only points that no earlier run broke.

    Args:
        own: the network as it is; only its predictions decide whether an image is adversarial.
        precise: the same network in float64.
        x: clean images (B, *) in [0, 1].
        y: their labels (B,).
        threat_model: norm and radius of the ball.
        generator: on the CPU; draws noise and starting points.
        longer: take more steps and target more classes, for use if `is_suspicious`.

    Raises:
        InvalidInput: the network raises an error in float64.
    """
    mended = _Mended(own, precise, x, threat_model, generator)
    found = x.clone()
    standing = torch.ones_like(y, dtype=torch.bool)
    disagree = ~mended.formats_agree(noise_at_the_border(x, threat_model, generator), y)
    for format_ in (x.dtype, torch.float64):
        # Points at which the formats disagree after the first pass are attacked again in the second.
        rows = (standing & (disagree == (format_ == torch.float64))).nonzero().squeeze(1)
        if len(rows):
            result = _attacked(mended, x[rows], y[rows], format_, longer=longer)
            found[rows], standing[rows], disagree[rows] = result.images, result.standing, result.disagree
    return found


@dataclass(frozen=True)
class _Result:
    images: Tensor
    """(B, *) float32: for each point an image that fools the network, or the clean image."""
    standing: Tensor
    """(B,) bool: points for which no such image was found."""
    disagree: Tensor
    """(B,) bool: points at which the formats disagreed at the end of a run."""


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
    """A network whose backward pass drops gradients that are not finite or that flow through constant units.

    A unit that has the same value for all images of a block and for noisy copies of them carries no information about
    an image, so its gradient should be zero. One pass over the images and the copies finds such units.
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
        # A small batch gets few noisy copies, since the device may not have memory for many more images.
        companions = min(_COMPANIONS, len(x) + _FEWEST_COMPANIONS)
        around = x[torch.arange(companions, device=x.device) % len(x)]
        noisy = noise_at_the_border(around, threat_model, generator)
        looked_at = torch.cat([x, noisy]).double().requires_grad_(True)
        recorder = _Recorder(len(looked_at))
        with torch.enable_grad(), recorder:
            precise(looked_at)
        self.constant = recorder.constant

    def __call__(self, at: Tensor) -> Tensor:
        """Standardized logits (B, C) of images (B, *) that require a gradient; in float64 if the images are float64."""
        with torch.enable_grad(), _Mender(self.constant, len(at)):
            logits = self.precise(at) if at.dtype == torch.float64 else self.own(at)
        return _standardized(logits)

    def formats_agree(self, x: Tensor, y: Tensor) -> Tensor:
        """Where margin and gradient in the network's own format agree with float64: (B, *), (B,) -> (B,) bool."""
        exact, exact_gradient, other = margin_and_gradient(self, x.double(), y)
        seen, gradient, _ = margin_and_gradient(self, x, y, other)
        flat = exact_gradient.flatten(1), gradient.double().flatten(1)
        cosine = torch.nn.functional.cosine_similarity(flat[0], flat[1], eps=_TINY)
        # Comparisons with NaN are false, so NaN never agrees.
        same: Tensor = ((exact - seen).abs() < _SAME_MARGIN) & (cosine > _SAME_DIRECTION)
        return same


class _OfEveryOperation(TorchFunctionMode, ABC):
    """Passes to `look` each tensor that an operation returns and through which a gradient will flow back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if func is Tensor.to:
            # A cast is an operation in only one of the two copies; counting it would shift all later positions.
            return given
        for tensor in given if isinstance(given, tuple | list) else (given,):
            if isinstance(tensor, Tensor) and tensor.requires_grad and tensor.grad_fn is not None:
                self.look(tensor)
        return given

    @abstractmethod
    def look(self, tensor: Tensor) -> None: ...


class _Recorder(_OfEveryOperation):
    """Records which units are constant over a batch."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.constant: list[Tensor | None] = []
        """For each operation a mask of the units that never change; None without such units, or without a batch."""

    @torch.no_grad()
    def look(self, tensor: Tensor) -> None:
        constant = None
        if tensor.dim() > 0 and len(tensor) == self.batch:
            constant = (tensor == tensor[:1]).all(0) | ~tensor.isfinite().all(0)
            constant = constant if constant.any() else None
        self.constant.append(constant)


class _Mender(_OfEveryOperation):
    """Sets gradients that are not finite, and those of the recorded constant units, to zero in the backward pass."""

    def __init__(self, constant: list[Tensor | None], batch: int) -> None:
        super().__init__()
        self.constant, self.batch, self.position = constant, batch, 0

    def look(self, tensor: Tensor) -> None:
        # A network may run other operations for other images; those were not recorded.
        constant = self.constant[self.position] if self.position < len(self.constant) else None
        self.position += 1
        fits = constant is not None and len(tensor) == self.batch and tensor.shape[1:] == constant.shape
        masked = constant if fits else None

        def mended(gradient: Tensor) -> Tensor:
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            return gradient if masked is None else gradient.masked_fill(masked, 0)

        tensor.register_hook(mended)


def _standardized(logits: Tensor) -> Tensor:
    """Logits (B, C) shifted to mean 0 and scaled to standard deviation 1 in each row."""
    shifted = logits - logits.mean(1, keepdim=True)
    tiny = torch.finfo(logits.dtype).tiny
    # Divide by the largest first: the squares of very large or small logits would overflow or vanish.
    shifted = shifted / shifted.detach().abs().amax(1, keepdim=True).clamp_min(tiny)
    # The scale is detached: with two classes the result is -1 and 1 for every image, so the full gradient is zero.
    return shifted / shifted.detach().std(1, correction=0, keepdim=True).clamp_min(tiny)


def _nearest_classes(mended: _Mended, x: Tensor, y: Tensor) -> Tensor:
    """(B, T): the other classes whose decision border is nearest by linearization, the nearest first.

    If classes were chosen by logits alone, decoys just below the best class could take all T places.
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
    """For each image the iterate with the largest margin over the label: (B, *) in ball and box, dtype of x."""
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
        # Stop only if the network itself is fooled: where its logits change in steps, an image just across the border
        # of the float64 copy need not be across its own.
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
        # The steepest step in L1 changes one pixel and would need thousands of steps; a few pixels are nearly as steep.
        movable = torch.where(velocity > 0, at < 1, at > 0)
        flat = (velocity.abs() * movable).flatten(1)
        chosen = flat.topk(max(1, int(_L1_SHARE * flat.shape[1])), dim=1).indices
        kept = torch.zeros_like(flat).scatter(1, chosen, 1.0).reshape(velocity.shape)
        return unit((velocity.sign() * movable) * kept, "L1")
    return unit(velocity, norm)


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *([1] * (x.dim() - 1)))
