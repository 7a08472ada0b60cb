"""The learning rate of each step."""

from __future__ import annotations

import math

from gkl.spec import CosineSchedule, PiecewiseSchedule, Sgd, TrainSpec


def learning_rate(spec: TrainSpec, step: int, steps_per_epoch: int) -> float:
    """The rate of a step, counted from 0 over the whole run.

    'cosine' and 'piecewise' change from epoch to epoch, 'one_cycle' from step to step as torch's `OneCycleLR`.
    """
    optimizer: Sgd = spec.optimizer
    base, schedule = optimizer.learning_rate, spec.schedule
    epoch = step // steps_per_epoch + 1
    if isinstance(schedule, CosineSchedule):
        return base * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / spec.epochs))
    if isinstance(schedule, PiecewiseSchedule):
        return base * schedule.factor ** sum(epoch >= milestone for milestone in schedule.milestones)
    start = base / schedule.start_divisor
    last = spec.epochs * steps_per_epoch - 1
    peak = schedule.warmup_fraction * (last + 1) - 1
    if step <= peak:
        return _half_cosine(start, base, step / peak if peak > 0 else 1.0)
    return _half_cosine(base, start / schedule.end_divisor, (step - peak) / (last - peak))


def _half_cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * fraction))
