"""Accuracy of a network trained on a long tail, by the size of the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from gkl.data import ImageSet, unit_range
from gkl.data.imbalance import FEW, MANY
from gkl.outcome import ShotAccuracies
from gkl.training.network import Network


@torch.no_grad()
def shot_accuracies(
    network: Network, test: ImageSet, counts: Tensor, *, batch_size: int, device: torch.device
) -> ShotAccuracies:
    """Top-1 on the test images, and the mean accuracy of many-, medium- and few-shot classes.

    Args:
        network: is put in eval mode.
        test: images with labels.
        counts: (C,) int64, training images of each class.
        batch_size: images classified at once.
        device: where to compute.
    """
    network.model.eval()
    correct, total = torch.zeros(len(counts)), torch.zeros(len(counts))
    for images, labels in zip(test.images.split(batch_size), test.labels.split(batch_size), strict=True):
        right = network(unit_range(images.to(device))).argmax(1).cpu() == labels
        correct.index_add_(0, labels, right.float())
        total.index_add_(0, labels, torch.ones(len(labels)))

    def mean(chosen: Tensor) -> float | None:
        measured = chosen & (total > 0)
        return float((correct / total)[measured].mean()) if measured.any() else None

    return ShotAccuracies(
        top1=float(correct.sum() / total.sum()),
        many=mean(counts > MANY),
        medium=mean((counts >= FEW) & (counts <= MANY)),
        few=mean(counts < FEW),
    )
