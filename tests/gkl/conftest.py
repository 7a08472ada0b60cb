"""A small network that is robust enough for every attack to find something to do, and one that is not."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from gkl.models import load_model
from gkl.recipes.adversarial import digits
from gkl.run_context import RunContext
from gkl.training import train
from tests.gkl.evaluation.short_attacks import attacks_shortened
from tests.specs import NO_FILES


def _trained(factory: pytest.TempPathFactory, name: str, **changes: object) -> Path:
    """Trained once for all processes that share the tests' work."""
    root = factory.getbasetemp()
    directory = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    weights = directory / "weights.safetensors"
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not weights.exists():
            spec = digits().model_copy(update={"architecture": "tiny_cnn", **changes})
            train(spec, RunContext(directory=directory, datasets_dir=NO_FILES, device="cpu"))
    return weights


@pytest.fixture(scope="session")
def robust_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny_cnn for digits."""
    return _trained(tmp_path_factory, "robust", epochs=30)


@pytest.fixture(scope="session")
def plain_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny_cnn for digits that was trained with next to no perturbation."""
    threat_model = digits().threat_model.model_copy(update={"epsilon": 0.001})
    return _trained(tmp_path_factory, "plain", epochs=5, threat_model=threat_model)


@pytest.fixture
def robust_model(robust_weights: Path) -> nn.Module:
    return load_model("tiny_cnn", "digits", robust_weights, None).eval()


@pytest.fixture
def plain_model(plain_weights: Path) -> nn.Module:
    return load_model("tiny_cnn", "digits", plain_weights, None).eval()


@pytest.fixture
def short_attacks() -> Iterator[None]:
    with attacks_shortened():
        yield


@pytest.fixture
def short_square() -> Iterator[None]:
    """All others as published: it is there for networks that these do not see through."""
    with attacks_shortened(steps=100):
        yield
