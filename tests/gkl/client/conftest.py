"""A service that answers on a port of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from app.core.settings import Settings
from app.db.database import Database
from app.store import ArtifactStore
from gkl.client import Client
from tests.app.boards.test_results import measure, train
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


@pytest.fixture
def measured(database: Database, store: ArtifactStore, tmp_path: Path) -> Path:
    """The certificate of evaluation 1, of five points of which one was misclassified and one broken."""
    path = tmp_path / "stored.safetensors"
    tensors = {
        "label": np.array([0, 1, 2, 3, 4]),
        "prediction": np.array([0, 1, 2, 3, 9]),
        "broken_by": np.array([-1, 0, -1, -1, -2]),
        "perturbation_norm": np.array([np.nan, 0.1, np.nan, np.nan, np.nan], np.float32),
        "index": np.array([1]),
        "adversarial_prediction": np.array([7]),
    }
    save_file(tensors, path, {"gklbench": json.dumps({"attacks": ["APGD-CE"]})})
    stored = store.put(path)
    weights = train(database, "Measured")
    measure(database, weights, robust=200, certificate_sha256=stored.sha256)
    return path
