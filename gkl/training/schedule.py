"""The learning rate and the momentum of each step."""

from __future__ import annotations

import math

from gkl.spec import BaseTrainSpec, CosineSchedule, OneCycleSchedule, PiecewiseSchedule, Sgd


def learning_rate(spec: BaseTrainSpec, step: int, steps_per_epoch: int) -> float:
    """The rate of a step, counted from 0 over the whole run.

    'cosine' and 'piecewise' change from epoch to epoch, 'one_cycle' as torch's `OneCycleLR` that is moved after every
    step or after every epoch.
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

    That of AdamW is its first beta.
    """
    optimizer, schedule = spec.optimizer, spec.schedule
    if not isinstance(schedule, OneCycleSchedule) or schedule.low_momentum is None or schedule.high_momentum is None:
        return optimizer.momentum if isinstance(optimizer, Sgd) else optimizer.betas[0]
    high, low = schedule.high_momentum, schedule.low_momentum
    return _one_cycle(spec, schedule, step, steps_per_epoch, (high, low, high))


def _one_cycle(
    spec: BaseTrainSpec, schedule: OneCycleSchedule, step: int, steps_per_epoch: int, values: tuple[float, float, float]
) -> float:
    """Between the values at the start, at the peak of the rate and at the end."""
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
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * fraction))
