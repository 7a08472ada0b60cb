"""Controls how BatchNorm's running statistics are updated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gkl.spec import BatchNormStatistics


@contextmanager
def unrecorded_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block, BatchNorm in train mode uses the batch's statistics but does not update its running ones."""
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def set_momentum(model: nn.Module, spec: BatchNormStatistics, step: int) -> None:
    """Set the momentum of every BatchNorm layer for a step, counted from 0 over the run.

    Called before every step, so that a resumed run has the right momentum without saving it in the checkpoint.
    """
    momentum = spec.momentum
    if step == 0 and spec.first_momentum is not None:
        momentum = spec.first_momentum
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = momentum
