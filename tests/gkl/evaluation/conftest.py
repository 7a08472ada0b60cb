"""A small network that is robust enough for every attack to find something to do, and one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from gkl.models import load_model
from gkl.recipes import digits
from gkl.training import train
from tests.specs import NO_FILES


def _trained(directory: Path, **changes: object) -> Path:
    spec = digits().model_copy(update={"architecture": "tiny_cnn", **changes})
    train(spec, directory, datasets_dir=NO_FILES, report=lambda _: None, device="cpu")
    return directory / "weights.safetensors"


@pytest.fixture(scope="session")
def robust_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny_cnn for digits."""
    return _trained(tmp_path_factory.mktemp("robust"), epochs=30)


@pytest.fixture(scope="session")
def plain_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny_cnn for digits that was trained with next to no perturbation."""
    threat_model = digits().threat_model.model_copy(update={"epsilon": 0.001})
    return _trained(tmp_path_factory.mktemp("plain"), epochs=5, threat_model=threat_model)


@pytest.fixture
def robust_model(robust_weights: Path) -> nn.Module:
    return load_model("tiny_cnn", "digits", robust_weights, None).eval()


@pytest.fixture
def plain_model(plain_weights: Path) -> nn.Module:
    return load_model("tiny_cnn", "digits", plain_weights, None).eval()
