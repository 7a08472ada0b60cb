"""For load balancers and people: is it alive, and can it work?"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from sqlalchemy.exc import SQLAlchemyError

from app import workers
from app.access import COUNTED, READS
from app.broker import broker_problem, hears_relay
from app.migrations import is_current
from app.problems import PROBLEM_RESPONSES
from app.schemas import Readiness
from app.service import Service, ServiceDep

router = APIRouter(tags=["health"], responses=PROBLEM_RESPONSES)


@router.get("/healthz", summary="Whether the process answers")
def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Whether every part is there",
    responses={503: {"model": Readiness}},
    # Asked too often, it would keep the parts busy.
    dependencies=[COUNTED],
)
def readyz(service: ServiceDep, response: Response) -> Readiness:
    parts = {
        "database": _database_problem(service) or "ok",
        "broker": broker_problem(service.settings) or "ok",
        "store": service.store.problem() or "ok",
    }
    ready = set(parts.values()) == {"ok"}
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, parts=parts, workers=_workers(service), relay=_relay(service))


@router.get(
    "/metrics",
    summary="What Prometheus asks for",
    dependencies=[READS],
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE_PLAIN_0_0_4: {"schema": {"type": "string"}}}}},
)
def metrics(request: Request) -> Response:
    """In its text format; answers with what there is while the database or the broker is away."""
    return Response(request.app.state.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _database_problem(service: Service) -> str | None:
    try:
        if not is_current(service.database):
            return "its schema is not this version's; run 'gklbench migrate'"
    except SQLAlchemyError as error:
        return f"cannot be used: {type(error).__name__}"
    return None


def _workers(service: Service) -> str:
    try:
        with service.database.reading() as session:
            lease = timedelta(seconds=service.settings.lease_seconds)
            states = Counter(status.state for status in workers.all_of_them(session, lease=lease))
    except SQLAlchemyError:
        return "not known: the database cannot be used"
    if not set(states) - {"lost"}:
        return "none was heard of: start one with 'gklbench worker'"
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))


def _relay(service: Service) -> str:
    heard = hears_relay(service.settings)
    if heard is None:
        return "not known: the broker does not answer"
    return "ok" if heard else "none was heard of: start one with 'gklbench relay'"
