"""A network that was trained for a second, and attacks that take as long."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gkl.data import ImageSet, load_test, load_train, unit_range
from gkl.models import build_model
from tests.gkl.evaluation.short_attacks import attacks_shortened
from tests.specs import NO_FILES

QUICK: dict[str, Any] = {
    "epsilon": 0.1,
    "protocol": "custom",
    "attacks": ("apgd-ce", "apgd-dlr"),
    "batch_size": 20,
    "progress": False,
}
"""Options of an evaluation that takes a second with the fixture `short_attacks`."""


@cache
def _state() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("tiny_cnn", "digits")
        data = load_train("digits", NO_FILES)
        x, y = unit_range(data.take(torch.arange(len(data)))), data.labels
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trained_model() -> nn.Module:
    """For digits, right on nearly all of them, in training mode."""
    model = build_model("tiny_cnn", "digits")
    model.load_state_dict(_state())
    return model.train()


@pytest.fixture
def model() -> nn.Module:
    return trained_model()


@pytest.fixture
def data() -> ImageSet:
    return load_test("digits", NO_FILES, 40)


@pytest.fixture
def short_attacks() -> Any:
    with attacks_shortened():
        yield
