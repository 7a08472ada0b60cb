"""Test accuracy of a network that was trained on an imbalanced data set, by the size of the classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from gkl.data import unit_range
from gkl.outcome import LongTailAccuracy
from gkl.training.network import Network

_MANY, _FEW = 100, 20


def measure_long_tail(
    network: Network,
    batches: Iterable[tuple[Tensor, Tensor]],
    class_counts: Sequence[int],
    *,
    batch_done: Callable[[int], None],
) -> LongTailAccuracy:
    """Measure the network's accuracy on test images; it is put in eval mode.

    Args:
        network: what was trained.
        batches: images (B, C, H, W), uint8, or float32 in [0, 1], and labels (B,) int64, on the network's device.
        class_counts: training images of each class.
        batch_done: called with the number of images done after each batch; an error that it raises ends this.
    """
    network.model.eval()
    correct, tested = (torch.zeros(len(class_counts), dtype=torch.int64, device=network.device) for _ in range(2))
    done = 0
    for images, labels in batches:
        with torch.no_grad():
            is_right = network(unit_range(images)).argmax(1) == labels
        tested += labels.bincount(minlength=len(class_counts))
        correct += labels[is_right].bincount(minlength=len(class_counts))
        done += len(labels)
        batch_done(done)
    return long_tail_accuracy(correct.cpu(), tested.cpu(), class_counts)


def long_tail_accuracy(correct: Tensor, tested: Tensor, class_counts: Sequence[int]) -> LongTailAccuracy:
    """Accuracies from counts.

    Args:
        correct: (C,) int64, test images of each class that were classified correctly.
        tested: (C,) int64, test images of each class.
        class_counts: training images of each class.
    """
    counts, shares = torch.tensor(class_counts), correct.double() / tested

    def mean(group: Tensor) -> float | None:
        chosen = shares[group & (tested > 0)]
        return float(chosen.mean()) if len(chosen) else None

    return LongTailAccuracy(
        top1=int(correct.sum()) / int(tested.sum()),
        many=mean(counts > _MANY),
        medium=mean((counts >= _FEW) & (counts <= _MANY)),
        few=mean(counts < _FEW),
    )
