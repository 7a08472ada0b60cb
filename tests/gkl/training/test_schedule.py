from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from gkl.recipes.adversarial import digits
from gkl.spec import TrainSpec
from gkl.training.schedule import learning_rate, momentum

EPOCHS, STEPS = 8, 5


def spec(schedule: dict[str, object]) -> TrainSpec:
    return TrainSpec.model_validate(digits().model_dump(mode="json") | {"epochs": EPOCHS, "schedule": schedule})


def torchs(scheduler: LRScheduler, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)


def test_cosine_and_piecewise_equal_torchs_epoch_by_epoch() -> None:
    sgd = optimizer()
    expected = torchs(CosineAnnealingLR(sgd, EPOCHS), sgd, EPOCHS)
    cosine = spec({"kind": "cosine"})
    assert [learning_rate(cosine, e * STEPS + STEPS - 1, STEPS) for e in range(EPOCHS)] == pytest.approx(expected)
    sgd = optimizer()
    # torch counts epochs from 0: its milestone 3 is our epoch 4.
    expected = torchs(MultiStepLR(sgd, [3, 6], 0.1), sgd, EPOCHS)
    piecewise = spec({"kind": "piecewise", "milestones": [4, 7]})
    assert [learning_rate(piecewise, e * STEPS, STEPS) for e in range(EPOCHS)] == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0.1, 0.3, 0.5])
def test_one_cycle_equals_torchs_step_by_step(warmup: float) -> None:
    sgd = optimizer()
    total = EPOCHS * STEPS
    scheduler = OneCycleLR(sgd, max_lr=0.1, total_steps=total, pct_start=warmup, cycle_momentum=False)
    expected = torchs(scheduler, sgd, total - 1)
    ours = spec({"kind": "one_cycle", "warmup_fraction": warmup})
    assert [learning_rate(ours, step, STEPS) for step in range(total - 1)] == pytest.approx(expected)


def test_a_cosine_over_an_epoch_more_is_that_of_the_released_scripts() -> None:
    """cos(pi * e / (E + 1)) with e from 1: the first epoch is below the full rate, the last above 0."""
    released = spec({"kind": "cosine", "span": "epochs_plus_one"})
    for epoch in range(1, EPOCHS + 1):
        expected = 0.1 * (1 + math.cos(math.pi * epoch / (EPOCHS + 1))) / 2
        for step in (0, STEPS - 1):
            assert learning_rate(released, (epoch - 1) * STEPS + step, STEPS) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("warmup", [0.025, 0.3, 0.5])
def test_one_cycle_per_epoch_equals_torchs_moved_after_every_epoch(warmup: float) -> None:
    sgd = optimizer()
    scheduler = OneCycleLR(sgd, max_lr=0.1, total_steps=EPOCHS, pct_start=warmup)
    expected = []
    for _ in range(EPOCHS):
        expected.append((sgd.param_groups[0]["lr"], sgd.param_groups[0]["momentum"]))
        sgd.step()
        scheduler.step()
    moving = {"moves": "per_epoch", "low_momentum": 0.85, "high_momentum": 0.95}
    ours = spec({"kind": "one_cycle", "warmup_fraction": warmup, **moving})
    for step in range(EPOCHS * STEPS):
        rate, inertia = expected[step // STEPS]
        assert learning_rate(ours, step, STEPS) == pytest.approx(rate, rel=1e-12)
        assert momentum(ours, step, STEPS) == pytest.approx(inertia, rel=1e-12)


def test_momentum_is_the_optimizers_unless_one_cycle_moves_it() -> None:
    for schedule in ({"kind": "cosine"}, {"kind": "one_cycle"}):
        assert momentum(spec(schedule), 7, STEPS) == 0.9
    moving = spec({"kind": "one_cycle", "warmup_fraction": 0.5, "low_momentum": 0.8, "high_momentum": 0.9})
    along = [momentum(moving, step, STEPS) for step in range(EPOCHS * STEPS)]
    assert (along[0], along[-1]) == pytest.approx((0.9, 0.9))
    assert min(along) == pytest.approx(0.8)
