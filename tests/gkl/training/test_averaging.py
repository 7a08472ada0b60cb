from __future__ import annotations

import pytest
import torch
from torch import nn

from gkl.spec import EpochAveraging, StepAveraging
from gkl.training.averaging import WeightAverage


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def drift(model: nn.Module) -> dict[str, torch.Tensor]:
    """Change weights and statistics as a step would; returns a copy of them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.train()(torch.rand(4, 1, 8, 8))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_average(average: WeightAverage, expected: dict[str, torch.Tensor], newest: dict[str, torch.Tensor]) -> None:
    for name, tensor in average.model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[name])
        else:
            assert torch.equal(tensor, newest[name])


def test_epoch_averaging_starts_with_the_first_epoch_and_takes_statistics_along() -> None:
    model = network()
    average = WeightAverage(model, EpochAveraging(tau=0.9), total_steps=100)
    expected: dict[str, torch.Tensor] = {}
    for epoch in (1, 2, 3):
        now = drift(model)
        average.after_step(model, epoch)
        average.after_epoch(model, epoch)
        expected = {n: 0.9 * expected[n] + 0.1 * t if expected else t for n, t in now.items() if t.is_floating_point()}
        assert_average(average, expected, now)


def test_step_averaging_follows_in_warm_up_and_then_slows_down() -> None:
    model = network()
    average = WeightAverage(model, StepAveraging(kind="step", tau=0.25, warmup_fraction=0.02), total_steps=100)
    expected: dict[str, torch.Tensor] = {}
    # Two steps of warm-up, then (1 + k) / (10 + k) for k = 1, 2, 3 until it would exceed tau.
    for step, decay in enumerate([0.0, 0.0, 2 / 11, 3 / 12, 0.25, 0.25], start=1):
        now = drift(model)
        average.after_step(model, step)
        average.after_epoch(model, step)
        floating = {n: t for n, t in now.items() if t.is_floating_point()}
        expected = {n: decay * expected[n] + (1 - decay) * t if expected else t for n, t in floating.items()}
        assert_average(average, expected, now)


def test_buffers_can_be_copied_instead() -> None:
    for spec in (
        StepAveraging(kind="step", tau=0.5, warmup_fraction=0.0, buffers="copied"),
        EpochAveraging(tau=0.5, buffers="copied"),
    ):
        model = network()
        average = WeightAverage(model, spec, total_steps=100)
        expected: dict[str, torch.Tensor] = {}
        # (1 + k) / (10 + k) is below the step average's tau so early.
        for number, decay in enumerate([2 / 11, 3 / 12, 4 / 13] if spec.kind == "step" else [0.0, 0.5, 0.5], start=1):
            start = expected or {n: t.clone() for n, t in average.model.state_dict().items()}
            now = drift(model)
            average.after_step(model, number)
            average.after_epoch(model, number)
            parameters = {n: decay * start[n] + (1 - decay) * now[n] for n, _ in model.named_parameters()}
            expected = now | parameters
            assert_average(average, expected, now)


def test_the_average_is_a_network_of_its_own() -> None:
    model = network()
    average = WeightAverage(model, EpochAveraging(), total_steps=1)
    drift(model)
    assert not torch.equal(model.state_dict()["0.weight"], average.model.state_dict()["0.weight"])
    assert not average.model.training
    with pytest.raises(RuntimeError):
        average.model(torch.rand(1, 1, 8, 8)).sum().backward()
