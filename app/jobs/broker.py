"""The way to the workers: a Celery message that carries a job's id and nothing else."""

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
    """A Celery instance with what sender and worker must agree on. Does not connect."""
    celery = Celery("gklbench", broker=settings.broker_url)
    celery.conf.update(
        task_default_queue=_QUEUE,
        # JSON only: a message that could carry a pickle could carry a program.
        task_serializer="json",
        accept_content=["json"],
        # What was measured goes to the database, in the transaction that ends the job; nothing waits here.
        task_ignore_result=True,
        broker_connection_retry_on_startup=True,
        # A broker may be away for a night; by default a worker would end after 100 tries.
        broker_connection_max_retries=None,
        # A sender must learn within seconds that the broker is away, or silent: the outbox keeps the message.
        broker_transport_options={"socket_connect_timeout": 3, "socket_timeout": 3},
    )
    return celery


def publisher(celery: Celery) -> Publish:
    away_until = 0.0

    def publish(job_id: int) -> None:
        nonlocal away_until
        # A broker that does not answer costs each try seconds: one try in a while is enough to see it come back.
        if time.monotonic() < away_until:
            raise ConnectionError("it did not answer a moment ago")
        try:
            celery.send_task(WAKE_TASK, args=[job_id], retry=False)
        except OperationalError as error:
            away_until = time.monotonic() + _AWAY_SECONDS
            raise ConnectionError(str(error)) from error

    return publish


def broker_problem(settings: Settings) -> str | None:
    """What keeps messages from being sent; None if nothing does."""
    try:
        with _client(settings) as client:
            client.ping()
    except RedisError as error:
        return f"does not answer: {type(error).__name__}"
    return None


def messages_waiting(settings: Settings) -> int | None:
    """Wake-ups that no worker has taken yet; None if the broker is away."""
    try:
        with _client(settings) as client:
            # Celery's one queue is a list of this name.
            return int(client.llen(_QUEUE))
    except RedisError:
        return None


def tell_of_relay(settings: Settings) -> None:
    """The relay's sign of life, which ends by itself. Nothing comes of it while the broker is away."""
    with suppress(RedisError), _client(settings) as client:
        client.set(_RELAY_KEY, "lives", ex=math.ceil(max(60.0, 3 * settings.relay_seconds)))


def forget_relay(settings: Settings) -> None:
    """It stops in order; another that lives says so with its next round."""
    with suppress(RedisError), _client(settings) as client:
        client.delete(_RELAY_KEY)


def hears_relay(settings: Settings) -> bool | None:
    """Whether a relay gave a sign of life in the last minute or three rounds; None if the broker is away."""
    try:
        with _client(settings) as client:
            return bool(client.exists(_RELAY_KEY))
    except RedisError:
        return None


def _client(settings: Settings) -> Redis:
    once = Retry(NoBackoff(), retries=0)
    return Redis.from_url(settings.broker_url, socket_connect_timeout=2, socket_timeout=2, retry=once)
