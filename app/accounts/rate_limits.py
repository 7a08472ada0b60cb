"""The limit of requests a minute. They are counted at the broker, so that all API processes share one count."""

from __future__ import annotations

import logging
import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.core.errors import TooMany
from app.core.settings import Settings

_log = logging.getLogger(__name__)

_AWAY_SECONDS = 10.0


class RateLimiter:
    """Counts requests at the broker; while the broker is down, each process counts by itself."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.broker_url
        self._alone = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._together: SlidingWindowCounterRateLimiter | None = None
        self._away_until = 0.0

    def count(self, who: str, per_minute: int, cost: int = 1) -> None:
        """Count a request.

        Args:
            who: whose request it is.
            per_minute: how many requests they may send in a minute.
            cost: how many requests this one counts as.

        Raises:
            TooMany: the limit is exceeded.
        """
        item = RateLimitItemPerMinute(per_minute, namespace="gklbench")
        if time.monotonic() >= self._away_until:
            try:
                self._hit(self._shared(), item, who, cost)
            except RedisError as error:
                # Asking a silent broker would delay every request by seconds.
                self._away_until = time.monotonic() + _AWAY_SECONDS
                _log.warning("the broker cannot be reached (%s); requests are counted by each process", error)
            else:
                return
        self._hit(self._alone, item, who, cost)

    def _shared(self) -> SlidingWindowCounterRateLimiter:
        if self._together is None:
            once = Retry(NoBackoff(), retries=0)
            pool = ConnectionPool.from_url(self._url, socket_connect_timeout=2, socket_timeout=2, retry=once)
            storage = RedisStorage(self._url, connection_pool=pool)
            self._together = SlidingWindowCounterRateLimiter(storage)
        return self._together

    @staticmethod
    def _hit(limiter: SlidingWindowCounterRateLimiter, item: RateLimitItemPerMinute, who: str, cost: int) -> None:
        if limiter.hit(item, who, cost=cost):
            return
        reset = limiter.get_window_stats(item, who).reset_time
        as_many = f" (this one counts as {cost})" if cost > 1 else ""
        raise TooMany(
            f"more than {item.amount} requests a minute{as_many}; slow down, or ask the service's owner for a higher "
            "limit",
            retry_after_seconds=max(1, math.ceil(reset - time.time())),
        )
