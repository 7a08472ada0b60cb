"""A client on the service's own machine, for which a service without tokens is open."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.http.service import Service
from app.main import Application, create_app

# By the settings that they were made for. What FastAPI reads of their functions takes longer than most tests.
_idle: dict[str, list[Application]] = defaultdict(list)


@contextmanager
def application(settings: Settings) -> Iterator[Application]:
    """One with these settings, which another test may have had before."""
    idle = _idle[settings.model_dump_json(exclude={"data_dir", "database_url", "broker_url"})]
    if idle:
        app = idle.pop()
        app.serve(Service.from_settings(settings, is_hasty=True))
    else:
        app = create_app(settings)
    yield app
    idle.append(app)


@contextmanager
def serving(settings: Settings, **options: Any) -> Iterator[TestClient]:
    """A client of an application with these settings."""
    with application(settings) as app, local_client(app, **options) as client:
        yield client


def local_client(app: FastAPI, **options: Any) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 50_000), **options)
