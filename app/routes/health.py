"""For load balancers and people: is it alive, and can it work?"""

from __future__ import annotations

from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from app.broker import broker_problem
from app.migrations import is_current
from app.schemas import Readiness
from app.service import Service, ServiceDep

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Whether the process answers")
def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", summary="Whether every part is there", responses={503: {"model": Readiness}})
def readyz(service: ServiceDep, response: Response) -> Readiness:
    parts = {
        "database": _database_problem(service) or "ok",
        "broker": broker_problem(service.settings) or "ok",
        "data_dir": _data_dir_problem(service) or "ok",
    }
    ready = set(parts.values()) == {"ok"}
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, parts=parts)


def _database_problem(service: Service) -> str | None:
    try:
        if not is_current(service.database):
            return "its schema is not this version's; run 'gklbench migrate'"
    except SQLAlchemyError as error:
        return f"cannot be used: {type(error).__name__}"
    return None


def _data_dir_problem(service: Service) -> str | None:
    return None if service.settings.data_dir.is_dir() else "does not exist"
