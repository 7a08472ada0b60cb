"""A service that answers on a port of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from app.core.settings import Settings
from gkl.client import Client
from tests.servers import served


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    # What comes through a proxy comes from loopback here, and is let in as long as the proxy adds no header.
    with served(settings) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": np.random.default_rng(0).standard_normal(750_000).astype(np.float32)}, path)
    return path
