"""Messages that wake workers: a Celery message carries a job's id and nothing else."""

from __future__ import annotations

import math
import time
from contextlib import suppress

from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.core.settings import Settings
from app.jobs.outbox import Publish

WAKE_TASK = "jobs.wake"

_QUEUE = "gklbench"
_RELAY_KEY = "gklbench:relay"
_AWAY_SECONDS = 10.0


def make_celery(settings: Settings) -> Celery:
    """A Celery instance with the settings that sender and worker share. Does not connect."""
    celery = Celery("gklbench", broker=settings.broker_url)
    celery.conf.update(
        task_default_queue=_QUEUE,
        # JSON only: a message that could carry a pickle could carry a program.
        task_serializer="json",
        accept_content=["json"],
        # Results go to the database, in the transaction that ends the job; Celery's results are not used.
        task_ignore_result=True,
        broker_connection_retry_on_startup=True,
        # The broker may be down for a night; by default a worker would exit after 100 tries.
        broker_connection_max_retries=None,
        # A sender must notice within seconds that the broker is down or silent: the outbox keeps the message.
        broker_transport_options={"socket_connect_timeout": 3, "socket_timeout": 3},
    )
    return celery


def publisher(celery: Celery) -> Publish:
    """A function that sends a job's wake-up message; after a failure it fails at once for ten seconds."""
    away_until = 0.0

    def publish(job_id: int) -> None:
        nonlocal away_until
        # Each try on a silent broker takes seconds: one try every ten seconds is enough to see it come back.
        if time.monotonic() < away_until:
            raise ConnectionError("it did not answer a moment ago")
        try:
            celery.send_task(WAKE_TASK, args=[job_id], retry=False)
        except OperationalError as error:
            away_until = time.monotonic() + _AWAY_SECONDS
            raise ConnectionError(str(error)) from error

    return publish


def broker_problem(settings: Settings) -> str | None:
    """Why the broker cannot be used, in words; None if it answers."""
    try:
        with _client(settings) as client:
            client.ping()
    except RedisError as error:
        return f"does not answer: {type(error).__name__}"
    return None


def messages_waiting(settings: Settings) -> int | None:
    """The number of wake-up messages that no worker has taken yet; None if the broker is down."""
    try:
        with _client(settings) as client:
            # Celery's one queue is a list of this name.
            return int(client.llen(_QUEUE))
    except RedisError:
        return None


def announce_relay(settings: Settings) -> None:
    """Set the key that says a relay is running; it expires by itself. Does nothing while the broker is down."""
    with suppress(RedisError), _client(settings) as client:
        client.set(_RELAY_KEY, "lives", ex=math.ceil(max(60.0, 3 * settings.relay_seconds)))


def clear_relay(settings: Settings) -> None:
    """Remove that key when a relay stops; another running relay sets it again in its next round."""
    with suppress(RedisError), _client(settings) as client:
        client.delete(_RELAY_KEY)


def relay_is_running(settings: Settings) -> bool | None:
    """Whether a relay announced itself within the last minute or three rounds; None if the broker is down."""
    try:
        with _client(settings) as client:
            return bool(client.exists(_RELAY_KEY))
    except RedisError:
        return None


def _client(settings: Settings) -> Redis:
    once = Retry(NoBackoff(), retries=0)
    return Redis.from_url(settings.broker_url, socket_connect_timeout=2, socket_timeout=2, retry=once)
