"""How large a perturbation is, and whether it is allowed. Attacks, certificates and their checks agree on this."""

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
