"""Our gradient descent against torch's optimizer, bit by bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from gkl.models import build_model
from gkl.training.descent import GradientDescent, ParameterGroup


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
def test_steps_equal_those_of_torchs_optimizer(momentum: float, nesterov: bool) -> None:
    torch.manual_seed(0)
    ours = build_model("tiny_cnn", "digits").to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours)
    # One that no loss depends on, as in a network with a part that is switched off.
    idle = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    mine, reference = ([*model.parameters(), parameter] for model, parameter in zip((ours, theirs), idle, strict=True))
    descent = GradientDescent(
        [ParameterGroup(mine[:4], 5e-4), ParameterGroup([], 1.0), ParameterGroup(mine[4:], 0.0)],
        learning_rate=0.1,
        momentum=momentum,
        nesterov=nesterov,
    )
    sgd = torch.optim.SGD(
        [{"params": reference[:4], "weight_decay": 5e-4}, {"params": reference[4:], "weight_decay": 0.0}],
        lr=0.1,
        momentum=momentum,
        nesterov=nesterov,
    )
    for step in range(4):
        descent.learning_rate = 0.1 / (step + 1)
        for group in sgd.param_groups:
            group["lr"] = 0.1 / (step + 1)
        x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((ours, descent), (theirs, sgd)):
            optimizer.zero_grad()
            loss: Tensor = model(x).square().sum()
            loss.backward()
            optimizer.step()
        assert all(map(torch.equal, mine, reference))
    buffers = [sgd.state[p].get("momentum_buffer") for p in reference]
    assert [descent.momentum_buffers.get(p) is None for p in mine] == [b is None for b in buffers]
    assert all(torch.equal(descent.momentum_buffers[p], b) for p, b in zip(mine, buffers, strict=True) if b is not None)
    assert torch.equal(idle[0], torch.ones(3))
