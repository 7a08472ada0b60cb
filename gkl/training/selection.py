"""Measures accuracy under PGD on held-out training images, by which the best epoch of a training is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gkl.attacks.pgd import projected_gradient_ascent, uniform_start
from gkl.data import unit_range
from gkl.spec import Selection, ThreatModel
from gkl.training.network import Network, frozen


@dataclass(frozen=True)
class HeldOutAccuracy:
    """Accuracies on the held-out images, each in [0, 1]."""

    clean: float
    robust: float


def held_out_accuracy(
    network: Network,
    images: Tensor,
    labels: Tensor,
    selection: Selection,
    threat_model: ThreatModel,
    *,
    batch_size: int,
    seed: int,
    batch_done: Callable[[int], None] = lambda images: None,
) -> HeldOutAccuracy:
    """Measure clean accuracy and accuracy under PGD (arXiv 1706.06083), which increases the selection's loss.

    Args:
        network: images (B, C, H, W) in [0, 1] -> logits; is put in eval mode.
        images: (N, C, H, W), uint8, or float32 in [0, 1], on the device to compute on.
        labels: (N,) int64, on the same device.
        selection: steps, step size and loss of the attack.
        threat_model: norm and epsilon of the attack.
        batch_size: images attacked at once.
        seed: seed of the attack's random start. With the same seed for every epoch, differences between epochs come
            from their weights and not from the starts.
        batch_done: called after each batch with the number of images done so far; an error that it raises ends the
            measurement.
    """
    loss = negative_margin if selection.maximizes == "margin" else _cross_entropy
    network.model.eval()
    generator = torch.Generator(images.device).manual_seed(seed)
    clean = robust = done = 0
    for stored, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        x = unit_range(stored)
        with frozen(network.model):
            x_adv = projected_gradient_ascent(
                lambda x_adv, y=y: loss(network(x_adv), y),  # type: ignore[misc]
                x,
                norm=threat_model.norm,
                epsilon=threat_model.epsilon,
                num_steps=selection.num_steps,
                step_size=selection.relative_step_size * threat_model.epsilon,
                start=uniform_start(x, norm=threat_model.norm, epsilon=threat_model.epsilon, generator=generator),
            )
        with torch.no_grad():
            correct = network(x).argmax(1) == y
            clean += int(correct.sum())
            robust += int((correct & (network(x_adv).argmax(1) == y)).sum())
        done += len(y)
        batch_done(done)
    return HeldOutAccuracy(clean / len(labels), robust / len(labels))


def negative_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """-sum_b max(z_y - max_{j != y} z_j, 0): Carlini and Wagner's loss (arXiv 1608.04644, f_6), to be increased.

    For a misclassified image, the term and its gradient are 0: the attack no longer changes this image.

    Args:
        logits: (B, C), C at least 2.
        labels: (B,) int64.

    Returns:
        A scalar of at most 0.
    """
    own = logits.gather(1, labels[:, None])
    strongest_other = logits.scatter(1, labels[:, None], -torch.inf).max(1, keepdim=True).values
    return -(own - strongest_other).clamp_min(0).sum()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")
