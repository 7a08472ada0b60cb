"""Computes the learning rate and the momentum of each step."""

from __future__ import annotations

import math

from gkl.spec import BaseTrainSpec, CosineSchedule, OneCycleSchedule, PiecewiseSchedule, Sgd


def learning_rate(spec: BaseTrainSpec, step: int, steps_per_epoch: int) -> float:
    """The rate of a step, counted from 0 over the whole run.

    The schedules 'cosine' and 'piecewise' change it from epoch to epoch. 'one_cycle' equals torch's `OneCycleLR`,
    with a call of its `step` after every training step or after every epoch, as `moves` says.
    """
    base, schedule = spec.optimizer.learning_rate, spec.schedule
    epoch = step // steps_per_epoch + 1
    if isinstance(schedule, CosineSchedule):
        warmup = schedule.warmup_epochs
        if epoch <= warmup:
            return base * epoch / warmup
        if schedule.span == "epochs":
            passed, span = epoch - 1 - warmup, spec.epochs - warmup
        else:
            passed, span = epoch - warmup, spec.epochs + 1 - warmup
        return base * 0.5 * (1 + math.cos(math.pi * passed / span))
    if isinstance(schedule, PiecewiseSchedule):
        return base * schedule.factor ** sum(epoch >= milestone for milestone in schedule.milestones)
    start = base / schedule.start_divisor
    return _one_cycle(spec, schedule, step, steps_per_epoch, (start, base, start / schedule.end_divisor))


def momentum(spec: BaseTrainSpec, step: int, steps_per_epoch: int) -> float:
    """The momentum of a step, counted from 0 over the whole run: the optimizer's, unless 'one_cycle' moves it.

    For AdamW it is the first beta.
    """
    optimizer, schedule = spec.optimizer, spec.schedule
    if not isinstance(schedule, OneCycleSchedule) or schedule.low_momentum is None or schedule.high_momentum is None:
        return optimizer.momentum if isinstance(optimizer, Sgd) else optimizer.betas[0]
    high, low = schedule.high_momentum, schedule.low_momentum
    return _one_cycle(spec, schedule, step, steps_per_epoch, (high, low, high))


def _one_cycle(
    spec: BaseTrainSpec, schedule: OneCycleSchedule, step: int, steps_per_epoch: int, values: tuple[float, float, float]
) -> float:
    """Interpolate between `values`: at the start, at the peak of the learning rate, and at the end of the run."""
    start, peak, end = values
    if schedule.moves == "per_epoch":
        now, count = step // steps_per_epoch, spec.epochs
    else:
        now, count = step, spec.epochs * steps_per_epoch
    last = count - 1
    turn = schedule.warmup_fraction * count - 1
    if now <= turn:
        return _half_cosine(start, peak, now / turn if turn > 0 else 1.0)
    return _half_cosine(peak, end, (now - turn) / (last - turn))


def _half_cosine(start: float, end: float, fraction: float) -> float:
    """Go from `start` to `end` along half a cosine; `fraction` is in [0, 1]."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * fraction))
