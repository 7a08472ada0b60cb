"""Optimizers made from a spec against torch's own, bit by bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gkl.models import build_model
from gkl.spec import AdamW, Optimizer, Sgd
from gkl.training.optimizers import make_optimizer, optimizer_state, restore_optimizer, set_rates

CASES: list[tuple[Optimizer, type[torch.optim.Optimizer], dict[str, Any]]] = [
    (Sgd(nesterov=True), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (Sgd(), torch.optim.SGD, {"momentum": 0.9}),
    (Sgd(momentum=0.0), torch.optim.SGD, {}),
    (AdamW(kind="adamw", betas=(0.8, 0.95), eps=1e-6), torch.optim.AdamW, {"betas": (0.8, 0.95), "eps": 1e-6}),
]


class WithIdle(nn.Module):
    """Has a parameter that no loss depends on, as in a network with a part that is switched off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used = build_model("tiny_cnn", "digits").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.idle = nn.Parameter(torch.ones(3))


def stepped(model: WithIdle, optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(number))
    loss: Tensor = model.used(x).square().sum()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize(("spec", "of_torch", "options"), CASES)
def test_steps_equal_those_of_torchs_optimizer(
    spec: Optimizer, of_torch: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    model = WithIdle()
    other = copy.deepcopy(model)
    spared = spec.model_copy(update={"decay_batch_norm": False})
    ours = make_optimizer(model, spared)
    normalization = [p for m in other.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    rest = [p for p in other.parameters() if all(p is not each for each in normalization)]
    groups = [
        {"params": rest, "weight_decay": spec.weight_decay},
        {"params": normalization, "weight_decay": 0.0},
    ]
    theirs = of_torch(groups, lr=spec.learning_rate, **options)  # type: ignore[call-arg]
    momentum = spec.momentum if isinstance(spec, Sgd) else spec.betas[0]
    for number in range(4):
        set_rates(ours, learning_rate=0.1 / (number + 1), momentum=momentum)
        for group in theirs.param_groups:
            group["lr"] = 0.1 / (number + 1)
        stepped(model, ours, number)
        stepped(other, theirs, number)
        for (name, mine), reference in zip(model.named_parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, reference), name
    assert torch.equal(model.idle, torch.ones(3))
    kept = optimizer_state(ours, model)
    expected = {
        f"{what}.{name}": tensor
        for name, parameter in other.named_parameters()
        for what, tensor in theirs.state.get(parameter, {}).items()
        if tensor is not None
    }
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("spec", [each for each, _, _ in CASES])
def test_what_is_restored_goes_on_the_same(spec: Optimizer) -> None:
    model = WithIdle()
    first = make_optimizer(model, spec)
    for number in range(2):
        stepped(model, first, number)
    copied = copy.deepcopy(model)
    second = make_optimizer(copied, spec)
    saved = {name: tensor.clone() for name, tensor in optimizer_state(first, model).items()}
    restore_optimizer(second, copied, saved)
    for number in range(2, 4):
        stepped(model, first, number)
        stepped(copied, second, number)
    for (name, mine), again in zip(model.named_parameters(), copied.parameters(), strict=True):
        assert torch.equal(mine, again), name


def test_a_moved_momentum_is_the_first_beta_of_adamw() -> None:
    optimizer = make_optimizer(WithIdle(), AdamW(kind="adamw", decay_batch_norm=False))
    set_rates(optimizer, learning_rate=0.5, momentum=0.7)
    assert [(group["lr"], group["betas"]) for group in optimizer.param_groups] == [(0.5, (0.7, 0.999))] * 2
