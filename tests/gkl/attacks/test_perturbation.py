"""Steps and projections, against closed forms and against a search of their own."""

from __future__ import annotations

import math

import pytest
import torch

from gkl.attacks.perturbation import dual_norm, into_ball, is_allowed, perturbation_norm, unit
from gkl.catalog import Norm
from gkl.spec import ThreatModel

NORMS: tuple[Norm, ...] = ("Linf", "L2", "L1")


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_of_size_1_gains_the_dual_norm(norm: Norm) -> None:
    gradient = drawn(0, 5, 1, 3, 3)
    if norm == "L1":
        # All in the steepest pixel; `unit` keeps the direction that it is given.
        flat = gradient.flatten(1)
        step = torch.zeros_like(flat).scatter(1, flat.abs().argmax(1, keepdim=True), 1.0) * flat
        step = unit(step.reshape(gradient.shape), norm)
    else:
        step = unit(gradient, norm)
    assert perturbation_norm(step, torch.zeros_like(step), norm) == pytest.approx([1.0] * 5)
    gained = (gradient * step).flatten(1).sum(1)
    assert gained.tolist() == pytest.approx(dual_norm(gradient, norm).tolist())


@pytest.mark.parametrize("norm", NORMS)
def test_a_tiny_direction_has_a_step_and_a_zero_one_has_none(norm: Norm) -> None:
    step = unit(torch.tensor([[1e-300, -1e-300], [0.0, 0.0]], dtype=torch.float64), norm)
    size = perturbation_norm(step, torch.zeros_like(step), norm)
    assert size.tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_projected_is_allowed_and_what_is_allowed_stays(norm: Norm) -> None:
    threat_model = ThreatModel(norm=norm, epsilon=0.3)
    x = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at = x + drawn(2, 50, 1, 4, 4)
    inside = into_ball(at, x, threat_model)
    assert is_allowed(inside, x, threat_model)[0].all()
    assert torch.allclose(into_ball(inside, x, threat_model), inside, atol=1e-12)


@pytest.mark.parametrize("norm", ["Linf", "L1"])
def test_no_allowed_point_is_nearer_than_the_projection(norm: Norm) -> None:
    """The nearest point p of a convex set is where (a - p)(q - p) <= 0 for every q in the set."""
    threat_model = ThreatModel(norm=norm, epsilon=0.4)
    x = torch.rand(20, 1, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    at = x + drawn(4, 20, 1, 3, 3)
    nearest = into_ball(at, x, threat_model)
    for seed in range(200):
        other = into_ball(x + math.exp(seed % 7 - 3) * drawn(seed, 20, 1, 3, 3), x, threat_model)
        assert (((at - nearest) * (other - nearest)).flatten(1).sum(1) <= 1e-9).all()
