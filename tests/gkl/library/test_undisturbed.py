"""Somebody else's model is given back as it was."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gkl.library.undisturbed import undisturbed


class Restless(nn.Module):
    """Changes all that it can reach when it is called."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
        self.layer[0].weight.grad = torch.ones(4, 4)
        self.layer[1].bias.requires_grad_(False)
        self.register_buffer("count", torch.zeros(()))
        self.calls = 0
        self.eval()
        self.layer[2].train()

    def forward(self, x: Tensor) -> Tensor:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        self.calls += 1
        self.seen = x
        self.train()
        self.requires_grad_(True)
        with torch.no_grad():
            self.layer[0].weight += 1
            self.count += 1
        self.layer[1].running_mean = torch.full((4,), 7.0)
        self.register_buffer("another", x)
        self.layer[0].weight.grad = None
        self.layer.register_forward_hook(lambda *_: None)
        self.layer.append(nn.Identity())
        answer: Tensor = self.layer(x)
        return answer


def picture(model: nn.Module) -> Any:
    return (
        {name: (id(t), t.clone(), t.requires_grad) for name, t in model.state_dict(keep_vars=True).items()},
        {name: module.training for name, module in model.named_modules()},
        {name: sorted(vars(module)) for name, module in model.named_modules()},
        [len(module._forward_hooks) for module in model.modules()],
    )


def assert_same(before: Any, after: Any) -> None:
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for name, (identity, values, flag) in before[0].items():
        assert (identity, flag) == (after[0][name][0], after[0][name][2]), name
        assert torch.equal(values, after[0][name][1]), name


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize("ends_with", [None, KeyboardInterrupt, RuntimeError])
def test_everything_is_as_before(ends_with: type[BaseException] | None) -> None:
    model = Restless()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = drawn()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    before, gradient = picture(model), model.layer[0].weight.grad
    try:
        with undisturbed(model):
            model.double()
            model.float()
            model(torch.rand(3, 4))
            assert model.calls == 1
            if ends_with is not None:
                raise ends_with
    except (KeyboardInterrupt, RuntimeError) as error:
        assert type(error) is ends_with
    assert_same(before, picture(model))
    assert model.calls == 0
    assert model.layer[0].weight.grad is gradient
    assert drawn() == expected


def test_a_model_that_was_moved_comes_back() -> None:
    model = nn.Linear(2, 2)
    storage, dtype = model.weight.data_ptr(), model.weight.dtype
    with undisturbed(model):
        model.to(torch.float64)
        assert model.weight.dtype == torch.float64
    assert (model.weight.data_ptr(), model.weight.dtype) == (storage, dtype)


def test_numbers_that_are_none_are_no_change() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.bias.fill_(torch.nan)
    with undisturbed(model):
        pass
    assert model.bias.isnan().all()
