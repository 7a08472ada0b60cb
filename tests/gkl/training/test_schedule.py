from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from gkl.recipes import digits
from gkl.spec import TrainSpec
from gkl.training.schedule import learning_rate

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
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


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
