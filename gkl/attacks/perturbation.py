"""Distances and balls: how large a perturbation is, whether it is allowed, and steps inside what is.

Attacks, certificates and their checks agree on this.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gkl.catalog import Norm
from gkl.spec import ThreatModel

# Attacks add, project and clamp in float32: half a unit in the last place of a pixel near 1, twice.
_PIXEL_ROUNDING = 6e-8
# They also measure norms in float32, sums over thousands of pixels.
_NORM_ROUNDING = 1e-5


def perturbation_norm(x_adv: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """Norm of x_adv - x over all pixels, in float64: (B, *), (B, *) -> (B,); NaN where a pixel is."""
    difference = (x_adv.double() - x.double()).flatten(1)
    if norm == "Linf":
        return difference.abs().amax(1)
    return difference.norm(dim=1) if norm == "L2" else difference.abs().sum(1)


def norm_tolerance(threat_model: ThreatModel, pixels: int) -> float:
    """How much further than epsilon an image may lie for no other reason than float32's rounding."""
    per_pixel = {"Linf": 1.0, "L2": math.sqrt(pixels), "L1": float(pixels)}[threat_model.norm]
    return _NORM_ROUNDING * threat_model.epsilon + _PIXEL_ROUNDING * per_pixel


def is_allowed(x_adv: Tensor, x: Tensor, threat_model: ThreatModel) -> tuple[Tensor, Tensor]:
    """Which images lie in the ball around the clean ones and in the box [0, 1], and their distances.

    (B, *), (B, *) -> bool (B,), float64 (B,).
    """
    size = perturbation_norm(x_adv, x, threat_model.norm)
    limit = threat_model.epsilon + norm_tolerance(threat_model, math.prod(x.shape[1:]))
    flat = x_adv.flatten(1)
    # Comparisons with NaN are false, so it is never allowed.
    allowed = (flat.amin(1) >= 0) & (flat.amax(1) <= 1) & (size <= limit)
    return allowed & torch.isfinite(size), size


def dual_norm(gradient: Tensor, norm: Norm) -> Tensor:
    """By how much a perturbation of size 1 can at most raise a linear function: (B, *) -> (B,)."""
    order = {"Linf": 1.0, "L2": 2.0, "L1": math.inf}[norm]
    length: Tensor = torch.linalg.vector_norm(gradient.flatten(1), order, dim=1)
    return length


def unit(direction: Tensor, norm: Norm) -> Tensor:
    """Directions (B, *) as steps of size 1: signs for Linf, scaled to length 1 for L2 and L1. Zero stays zero."""
    if norm == "Linf":
        return direction.sign()
    flat = direction.flatten(1)
    tiny = torch.finfo(direction.dtype).tiny
    # Scaled first: the squares of a small direction would underflow.
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(tiny)
    length = torch.linalg.vector_norm(flat, 2 if norm == "L2" else 1, dim=1, keepdim=True)
    step: Tensor = flat / length.clamp_min(tiny)
    return step.reshape(direction.shape)


def into_ball(at: Tensor, x: Tensor, threat_model: ThreatModel) -> Tensor:
    """A point of ball and box near `at`, the nearest one for Linf and L1: (B, *), (B, *) in [0, 1] -> (B, *)."""
    epsilon, moved = threat_model.epsilon, at - x
    if threat_model.norm == "Linf":
        return (x + moved.clamp(-epsilon, epsilon)).clamp(0, 1)
    if threat_model.norm == "L1":
        return x + _into_l1_ball(moved, x, epsilon)
    # Clamping to a box that holds x never moves a point away from x.
    length = moved.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    shrink: Tensor = (epsilon / length).clamp(max=1).reshape(-1, *([1] * (x.dim() - 1)))
    return (x + moved * shrink).clamp(0, 1)


def _into_l1_ball(moved: Tensor, x: Tensor, epsilon: float) -> Tensor:
    """The perturbation nearest to `moved` of at most epsilon in L1 with x plus it in [0, 1] (arXiv 2103.01208, Eq. 3).

    It is `moved` drawn towards zero by one amount for all pixels and clamped to the box; the amount is found by
    bisection.
    """
    low, high = -x.flatten(1), 1 - x.flatten(1)
    flat = moved.flatten(1)

    def drawn(by: Tensor) -> Tensor:
        shrunk = flat.sign() * (flat.abs() - by[:, None]).clamp_min(0)
        return torch.minimum(torch.maximum(shrunk, low), high)

    too_little, enough = torch.zeros_like(flat[:, 0]), flat.abs().amax(1)
    for _ in range(50):
        middle = (too_little + enough) / 2
        is_outside = drawn(middle).abs().sum(1) > epsilon
        too_little, enough = torch.where(is_outside, middle, too_little), torch.where(is_outside, enough, middle)
    fits = drawn(torch.zeros_like(enough)).abs().sum(1) <= epsilon
    return drawn(enough.masked_fill(fits, 0)).reshape(moved.shape)


def noise_at_the_border(x: Tensor, threat_model: ThreatModel, generator: torch.Generator | None = None) -> Tensor:
    """Images (B, *) with random perturbations of full size, inside the box; without a generator always the same."""
    generator = generator or torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    flat = noise.flatten(1)
    if threat_model.norm == "Linf":
        noise = noise.sign()
    else:
        length = flat.norm(dim=1) if threat_model.norm == "L2" else flat.abs().sum(1)
        noise = noise / length.reshape(-1, *([1] * (x.dim() - 1)))
    return (x + threat_model.epsilon * noise).clamp(0, 1)
