from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gkl.models import build_model
from gkl.training.batch_norm import unrecorded_statistics
from gkl.training.weight_perturbation import WeightPerturber


def reference(model: nn.Module, x: torch.Tensor, y: torch.Tensor, gamma: float) -> dict[str, torch.Tensor]:
    """AWP as its paper describes it: a step of SGD on a copy, then the difference scaled layer by layer."""
    proxy = copy.deepcopy(model)
    (-F.cross_entropy(proxy(x), y)).backward()
    torch.optim.SGD(proxy.parameters(), lr=0.01).step()
    moved = {}
    for (name, old), new in zip(model.state_dict().items(), proxy.state_dict().values(), strict=True):
        if name.endswith("weight") and old.dim() > 1:
            difference = new - old
            moved[name] = old + gamma * difference * old.norm() / (difference.norm() + 1e-20)
    return moved


def test_the_perturbation_is_the_papers_and_is_taken_back() -> None:
    torch.manual_seed(0)
    model = build_model("tiny_cnn", "digits").train()
    x, y = torch.rand(32, 1, 8, 8), torch.randint(0, 10, (32,))
    expected = reference(model, x, y, 0.05)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    perturber = WeightPerturber(model, 0.05)
    with unrecorded_statistics(model):
        objective = F.cross_entropy(model(x), y)
    with perturber.perturbed(objective):
        for name, tensor in model.state_dict().items():
            # The reference's difference has lost digits: it is a hundredth of a gradient, added to the weight.
            torch.testing.assert_close(tensor, expected.get(name, before[name]), rtol=1e-3, atol=1e-5)
            if name in expected:
                assert not torch.equal(tensor, before[name])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-6, atol=1e-7)


def test_it_makes_the_objective_worse() -> None:
    torch.manual_seed(0)
    model = build_model("small_cnn", "digits")
    x, y = torch.rand(64, 1, 8, 8), torch.randint(0, 10, (64,))
    perturber = WeightPerturber(model, 0.05)
    loss = F.cross_entropy(model(x), y)
    with perturber.perturbed(loss):
        assert F.cross_entropy(model(x), y) > loss


def test_layers_without_a_gradient_stay_where_they_are() -> None:
    """One that the forward pass leaves out, as RobustBench's WideResNet has, one whose gradient is 0, one frozen."""
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("used", "left_out", "dead", "frozen")})
    model["frozen"].requires_grad_(False)
    with torch.no_grad():
        model["dead"].weight.mul_(1e6)
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(8, 4)
    objective = model["used"](x).square().sum() + (model["dead"](model["frozen"](x)) * 0.0).sum()
    with WeightPerturber(model, 1.0).perturbed(objective):
        after = model.state_dict()
        assert not torch.equal(after["used.weight"], before["used.weight"])
        for name in ("left_out", "dead", "frozen"):
            assert torch.equal(after[f"{name}.weight"], before[f"{name}.weight"])


def test_weights_are_put_back_when_the_step_fails() -> None:
    model = nn.Linear(4, 4)
    before = model.weight.detach().clone()
    perturber = WeightPerturber(model, 0.5)
    with pytest.raises(ArithmeticError), perturber.perturbed(model(torch.rand(2, 4)).square().sum()):
        raise ArithmeticError
    torch.testing.assert_close(model.weight.detach(), before)


def test_statistics_are_neither_moved_nor_counted() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).train()
    before = copy.deepcopy(model.state_dict())
    with unrecorded_statistics(model):
        batch_statistics = model(torch.rand(8, 1, 8, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # It did normalize by the batch, not by the running statistics.
    assert abs(batch_statistics.mean().item()) < 1e-5
    model(torch.rand(8, 1, 8, 8))
    assert not torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"])
