"""What BatchNorm keeps of the batches that pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gkl.spec import BatchNormStatistics


@contextmanager
def unrecorded_statistics(model: nn.Module) -> Iterator[None]:
    """Within, BatchNorm in train mode uses the batch's statistics without adding them to its running ones."""
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def set_momentum(model: nn.Module, spec: BatchNormStatistics, step: int) -> None:
    """Let the running statistics follow the batches as the spec says in this step, counted from 0 over the run.

    Set before every step rather than once: a run that is resumed knows its step, and nothing else has to be saved.
    """
    momentum = spec.momentum
    if step == 0 and spec.first_momentum is not None:
        momentum = spec.first_momentum
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = momentum
