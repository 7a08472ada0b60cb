"""Norms of perturbations, the test whether an image lies inside a threat model, and projections into it.

Attacks, certificates and the checks of certificates all use these functions, so they agree on what is allowed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gkl.catalog import Norm
from gkl.spec import ThreatModel

# Attacks add, project and clamp in float32. Each rounding of a pixel near 1 is off by at most 3e-8, half a unit in the
# last place; this allows for two.
_PIXEL_ROUNDING = 6e-8
# Attacks also compute norms in float32, as sums over thousands of pixels.
_NORM_ROUNDING = 1e-5


def perturbation_norm(x_adv: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """Norm of x_adv - x over all pixels, in float64: (B, *), (B, *) -> (B,); NaN where a pixel is NaN."""
    difference = (x_adv.double() - x.double()).flatten(1)
    if norm == "Linf":
        return difference.abs().amax(1)
    return difference.norm(dim=1) if norm == "L2" else difference.abs().sum(1)


def norm_tolerance(threat_model: ThreatModel, pixels: int) -> float:
    """How far beyond epsilon an image may lie because of float32 rounding alone."""
    per_pixel = {"Linf": 1.0, "L2": math.sqrt(pixels), "L1": float(pixels)}[threat_model.norm]
    return _NORM_ROUNDING * threat_model.epsilon + _PIXEL_ROUNDING * per_pixel


def is_allowed(x_adv: Tensor, x: Tensor, threat_model: ThreatModel) -> tuple[Tensor, Tensor]:
    """Which images lie in the ball around the clean ones and in the box [0, 1], and their distances.

    (B, *), (B, *) -> bool (B,), float64 (B,).
    """
    size = perturbation_norm(x_adv, x, threat_model.norm)
    limit = threat_model.epsilon + norm_tolerance(threat_model, math.prod(x.shape[1:]))
    flat = x_adv.flatten(1)
    # Comparisons with NaN are false, so an image with NaN is never allowed.
    allowed = (flat.amin(1) >= 0) & (flat.amax(1) <= 1) & (size <= limit)
    return allowed & torch.isfinite(size), size


def dual_norm(gradient: Tensor, norm: Norm) -> Tensor:
    """The most by which a perturbation of norm 1 can raise a linear function with this gradient: (B, *) -> (B,)."""
    order = {"Linf": 1.0, "L2": 2.0, "L1": math.inf}[norm]
    length: Tensor = torch.linalg.vector_norm(gradient.flatten(1), order, dim=1)
    return length


def unit(direction: Tensor, norm: Norm) -> Tensor:
    """Directions (B, *) as steps of norm 1: their signs for Linf, scaled for L2 and L1. Zero stays zero."""
    if norm == "Linf":
        return direction.sign()
    flat = direction.flatten(1)
    tiny = torch.finfo(direction.dtype).tiny
    # Divide by the largest entry first: the squares of small entries would underflow.
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(tiny)
    length = torch.linalg.vector_norm(flat, 2 if norm == "L2" else 1, dim=1, keepdim=True)
    step: Tensor = flat / length.clamp_min(tiny)
    return step.reshape(direction.shape)


def into_ball(at: Tensor, x: Tensor, threat_model: ThreatModel) -> Tensor:
    """Project `at` (B, *) into the ball around x (B, *) and the box [0, 1]; to the nearest point for Linf and L1."""
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
    """The perturbation nearest to `moved` with an L1 norm of at most epsilon that keeps x plus it in [0, 1].

    See arXiv 2103.01208, Eq. 3. All pixels of `moved` are shrunk towards zero by the same amount and clamped to the
    box; bisection finds the amount.
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
    """Add random noise of norm epsilon to images (B, *) and clamp to [0, 1]; without a generator, always the same."""
    generator = generator or torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    flat = noise.flatten(1)
    if threat_model.norm == "Linf":
        noise = noise.sign()
    else:
        length = flat.norm(dim=1) if threat_model.norm == "L2" else flat.abs().sum(1)
        noise = noise / length.reshape(-1, *([1] * (x.dim() - 1)))
    return (x + threat_model.epsilon * noise).clamp(0, 1)
