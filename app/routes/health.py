"""Health checks for load balancers and people."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from sqlalchemy.exc import SQLAlchemyError

from app.db.migrations import is_current
from app.http.access import READS
from app.http.problems import PROBLEM_RESPONSES
from app.http.service import Service
from app.jobs import workers
from app.jobs.broker import broker_problem, relay_is_running
from gkl.answers import Readiness as ReadinessView

router = APIRouter(tags=["health"], responses=PROBLEM_RESPONSES)

_LOOK_SECONDS = 5.0
_LOOK_AGAIN_SECONDS = 1.0
_SILENT = f"gave no answer within {_LOOK_SECONDS:g} seconds"


class Readiness:
    """Checks all parts in parallel, at most once a second for any number of requests: a load balancer gets its answer
    in time even if a part is silent, and many requests do not load the parts."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # Its own threads: requests that wait for a silent part may occupy all others.
        self._threads = ThreadPoolExecutor(max_workers=5, thread_name_prefix="readiness")
        self._pending: dict[str, asyncio.Future[str]] = {}
        self._looking: asyncio.Task[ReadinessView] | None = None
        self._looked_at = 0.0

    async def look(self) -> ReadinessView:
        looking = self._looking
        if looking is None or (looking.done() and time.monotonic() - self._looked_at > _LOOK_AGAIN_SECONDS):
            looking = self._looking = asyncio.create_task(self._look())
        # If one client disconnects, the check continues for the others.
        return await asyncio.shield(looking)

    async def _look(self) -> ReadinessView:
        service = self._service
        looks: dict[str, Callable[[], str]] = {
            "database": lambda: _database_problem(service) or "ok",
            "broker": lambda: broker_problem(service.settings) or "ok",
            "store": lambda: service.store.problem() or "ok",
            "workers": lambda: _workers(service),
            "relay": lambda: _relay(service),
        }
        for name, look in looks.items():
            # A check that still hangs is not started again.
            if name not in self._pending or self._pending[name].done():
                self._pending[name] = asyncio.wrap_future(self._threads.submit(look))
        await asyncio.wait(self._pending.values(), timeout=_LOOK_SECONDS)
        found = {name: future.result() if future.done() else _SILENT for name, future in self._pending.items()}
        self._looked_at = time.monotonic()
        parts = {name: found[name] for name in ("database", "broker", "store")}
        ready = set(parts.values()) == {"ok"}
        return ReadinessView(ready=ready, parts=parts, workers=found["workers"], relay=found["relay"])


# Runs in the event loop, so it answers even when all threads wait.
@router.get("/healthz", summary="Whether the process answers")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", summary="Whether every part works", responses={503: {"model": ReadinessView}})
async def readyz(request: Request, response: Response) -> ReadinessView:
    """Not counted against any limit, since load balancers call it often; a result is reused for a second."""
    readiness: Readiness = request.app.state.readiness
    found = await readiness.look()
    if not found.ready:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
    return found


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    dependencies=[READS],
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE_PLAIN_0_0_4: {"schema": {"type": "string"}}}}},
)
def metrics(request: Request) -> Response:
    """In Prometheus' text format; while the database or the broker is down, with the metrics that remain."""
    return Response(request.app.state.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _database_problem(service: Service) -> str | None:
    try:
        if not is_current(service.database):
            return "its schema is not this version's; run 'gklbench migrate'"
        service.database.check_can_write()
    except SQLAlchemyError as error:
        return f"cannot be used: {type(error).__name__}"
    return None


def _workers(service: Service) -> str:
    try:
        with service.database.reading() as session:
            lease = timedelta(seconds=service.settings.lease_seconds)
            states = Counter(status.state for status in workers.all_of_them(session, lease=lease))
    except SQLAlchemyError:
        return "unknown: the database cannot be used"
    if not set(states) - {"lost"}:
        return "none was heard of: start one with 'gklbench worker'"
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))


def _relay(service: Service) -> str:
    heard = relay_is_running(service.settings)
    if heard is None:
        return "unknown: the broker does not answer"
    return "ok" if heard else "none was heard of: start one with 'gklbench relay'"
