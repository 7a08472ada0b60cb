"""On a linear model the strongest perturbation is known in closed form; gradient ascent must reach it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gkl.attacks.pgd import project, projected_gradient_ascent, uniform_start


def linear(weight: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model.load_state_dict({"1.weight": weight})
    return model


def margin_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: (model(x)[:, 1] - model(x)[:, 0]).sum()


def ascend(norm: str, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 16, generator=generator)
    # Far enough from the box's walls for the ball to be whole.
    x = 0.4 + 0.2 * torch.rand(5, 1, 4, 4, generator=generator)
    x_adv = projected_gradient_ascent(
        margin_of(linear(weight)),
        x,
        norm=norm,  # type: ignore[arg-type]
        epsilon=epsilon,
        num_steps=20,
        step_size=epsilon / 4,
        start=x,
    )
    return weight[1] - weight[0], x, x_adv


def test_linf_reaches_the_corner() -> None:
    direction, x, x_adv = ascend("Linf", 0.1)
    torch.testing.assert_close(x_adv, x + 0.1 * direction.sign().reshape(1, 1, 4, 4))


def test_l2_reaches_the_boundary_along_the_gradient() -> None:
    direction, x, x_adv = ascend("L2", 0.3)
    torch.testing.assert_close(x_adv, x + 0.3 * (direction / direction.norm()).reshape(1, 1, 4, 4))


def test_a_zero_gradient_moves_nothing_and_gives_no_nan() -> None:
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for norm in ("Linf", "L2"):
        x_adv = projected_gradient_ascent(
            margin_of(linear(torch.zeros(2, 16))), x, norm=norm, epsilon=0.5, num_steps=3, step_size=0.1, start=x
        )
        assert torch.equal(x_adv, x)


def test_projection_respects_ball_and_box() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(50, 3, 4, 4, generator=generator)
    wild = x + 3 * torch.randn(x.shape, generator=generator)
    linf = project(wild, x, norm="Linf", epsilon=0.2)
    l2 = project(wild, x, norm="L2", epsilon=0.7)
    for inside in (linf, l2):
        assert inside.min() >= 0
        assert inside.max() <= 1
    assert (linf - x).abs().max() <= 0.2 + 1e-6
    assert (l2 - x).flatten(1).norm(dim=1).max() <= 0.7 + 1e-6


def test_a_ball_of_no_size_and_a_vanishing_gradient_are_no_nan() -> None:
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(project(x, x, norm="L2", epsilon=0.0), x)
    weight = torch.full((2, 16), 1e-25)
    weight[0] = 0
    inside = torch.full((1, 1, 4, 4), 0.5)
    x_adv = projected_gradient_ascent(
        margin_of(linear(weight)), inside, norm="L2", epsilon=0.4, num_steps=1, step_size=0.4, start=inside
    )
    torch.testing.assert_close((x_adv - inside).norm(), torch.tensor(0.4))


def test_a_uniform_start_fills_the_ball_evenly() -> None:
    x = torch.full((4000, 1, 2, 2), 0.5)
    linf = uniform_start(x, norm="Linf", epsilon=0.2, generator=torch.Generator().manual_seed(0)) - x
    l2 = uniform_start(x, norm="L2", epsilon=0.2, generator=torch.Generator().manual_seed(0)) - x
    assert linf.abs().max() <= 0.2 + 1e-6
    # A share of r^d of a ball's volume lies within r of its radius.
    for sizes in (linf.flatten(1).abs().amax(1), l2.flatten(1).norm(dim=1)):
        assert sizes.max() <= 0.2 + 1e-6
        shares = torch.stack([(sizes < 0.2 * r).float().mean() for r in (0.5, 0.7, 0.9)])
        torch.testing.assert_close(shares, torch.tensor([0.5, 0.7, 0.9]) ** 4, rtol=0, atol=0.03)


def test_a_start_that_is_not_projected_is_where_the_first_gradient_is_taken() -> None:
    """On a quadratic loss the gradient depends on the point; one step is then known in closed form."""
    x = torch.tensor([[0.2, 0.5, 0.99]], dtype=torch.float64)
    start = x + torch.tensor([[0.4, -0.4, 0.4]], dtype=torch.float64)
    centre = torch.tensor([[0.45, 0.3, 1.2]], dtype=torch.float64)
    asked: list[Tensor] = []

    def network(point: Tensor) -> Tensor:
        asked.append(point.detach().clone())
        return (point - centre).square()

    def step(project_start: bool) -> Tensor:
        asked.clear()
        return projected_gradient_ascent(
            lambda point: network(point).sum(),
            x,
            norm="Linf",
            epsilon=0.1,
            num_steps=1,
            step_size=0.05,
            start=start,
            project_start=project_start,
        )

    released = step(False)
    assert torch.equal(asked[0], start)
    # (0.6, 0.1, 1.39) moves away from the centre, by (+, -, +); then ball and box.
    torch.testing.assert_close(released, torch.tensor([[0.3, 0.4, 1.0]], dtype=torch.float64))
    projected = step(True)
    torch.testing.assert_close(asked[0], torch.tensor([[0.3, 0.4, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(projected, torch.tensor([[0.25, 0.45, 0.95]], dtype=torch.float64))
    assert not start.requires_grad
