"""What the tests of a service share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from tests.local import application


@pytest.fixture
def guarded(settings: Settings) -> Settings:
    """A service that asks for tokens."""
    return settings.model_copy(update={"access": "tokens"})


@pytest.fixture
def visitor(guarded: Settings) -> Iterator[TestClient]:
    """Somebody without a token."""
    with (
        application(guarded) as app,
        TestClient(app, base_url="https://bench.example", raise_server_exceptions=False) as client,
    ):
        yield client
