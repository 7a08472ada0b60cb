"""The inner maximization of adversarial training: projected gradient ascent on a given loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gkl.catalog import Norm
from gkl.errors import InvalidInput


def projected_gradient_ascent(
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    norm: Norm,
    epsilon: float,
    num_steps: int,
    step_size: float,
    start: Tensor,
    project_start: bool = True,
) -> Tensor:
    """Perturb `x` to increase `objective(x_adv)` within the ball and the box (PGD, arXiv 1706.06083).

    The mode of the networks behind the objective is not changed. If batch statistics must not change, put them in eval
    mode first, or turn off the recording of the statistics.

    Args:
        objective: perturbed images (B, *) -> scalar to be increased, such as a loss of a network's logits.
        x: (B, *) natural images in [0, 1].
        norm: 'Linf' or 'L2', over all pixels of an image.
        epsilon: radius of the ball, at least 0.
        num_steps: gradient steps, at least 1.
        step_size: length of a step in `norm`.
        start: (B, *), the images to start from.
        project_start: whether the start is projected before the first gradient; after each step images always are.

    Returns:
        (B, *) images in [0, 1] at most `epsilon` from `x`, detached.

    Raises:
        InvalidInput: the norm is L1.
    """
    if norm == "L1":
        raise InvalidInput("there is no gradient ascent in L1 here; take 'Linf' or 'L2'")
    x_adv = project(start, x, norm=norm, epsilon=epsilon) if project_start else start.detach()
    for _ in range(num_steps):
        x_adv.requires_grad_(True)
        # Compute the images' gradient only: those of the parameters would be a third of the backward pass.
        (gradient,) = torch.autograd.grad(objective(x_adv), x_adv)
        with torch.no_grad():
            ascent = gradient.sign() if norm == "Linf" else _unit_l2(gradient)
            x_adv = project(x_adv + step_size * ascent, x, norm=norm, epsilon=epsilon)
    return x_adv.detach()


def uniform_start(x: Tensor, *, norm: Norm, epsilon: float, generator: torch.Generator) -> Tensor:
    """A point drawn uniformly from the ball of radius `epsilon` around each image; (B, *) -> (B, *).

    May lie outside the box: `projected_gradient_ascent` projects it.
    """
    if norm == "Linf":
        return x + epsilon * (2 * torch.rand(x.shape, generator=generator, device=x.device) - 1)
    direction = _unit_l2(torch.randn(x.shape, generator=generator, device=x.device))
    # The volume within radius r grows as r to the number of pixels.
    pixels = x[0].numel()
    radius = torch.rand([len(x)] + [1] * (x.dim() - 1), generator=generator, device=x.device) ** (1 / pixels)
    return x + epsilon * radius * direction


@torch.no_grad()
def project(x_adv: Tensor, x: Tensor, *, norm: Norm, epsilon: float) -> Tensor:
    """Project `x_adv` to within `epsilon` of `x` and into the box [0, 1]; shapes (B, *).

    For L2 the ball is applied before the box. The result stays in the ball: clamping to a box that contains `x` never
    moves a point away from `x`.
    """
    difference = x_adv - x
    if norm == "Linf":
        difference = difference.clamp(-epsilon, epsilon)
    else:
        length = _l2_norm(difference)
        # Epsilon and length may both be 0; the smallest positive number prevents a division by zero.
        difference = difference * (epsilon / length.clamp_min(max(epsilon, torch.finfo(x.dtype).tiny)))
    return (x + difference).clamp(0.0, 1.0)


def _l2_norm(batch: Tensor) -> Tensor:
    """The L2 norm of each image: (B, *) -> (B, 1, ..., 1), which broadcasts."""
    length: Tensor = batch.flatten(1).norm(dim=1)
    return length.reshape(-1, *([1] * (batch.dim() - 1)))


def _unit_l2(gradient: Tensor) -> Tensor:
    """Gradient scaled to length 1 per image; a zero gradient stays zero instead of becoming NaN."""
    tiny = torch.finfo(gradient.dtype).tiny
    # Divide by the largest entry first: the squares of small entries would underflow.
    largest = gradient.flatten(1).abs().amax(1).reshape(-1, *([1] * (gradient.dim() - 1)))
    scaled = gradient / largest.clamp_min(tiny)
    return scaled / _l2_norm(scaled).clamp_min(tiny)
