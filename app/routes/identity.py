"""The sender of the request: their scope, limits and usage."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from app.accounts import quotas
from app.http.access import Reader
from app.http.service import ServiceDep
from gkl.answers import IdentityView, LimitsView, UsedView

router = APIRouter(prefix="/me", tags=["administration"])


@router.get("", summary="See your scope, limits and usage")
def get_identity(service: ServiceDep, reader: Reader) -> IdentityView:
    with service.database.reading() as session:
        used = quotas.used(session, reader.name)
    return IdentityView(
        name=reader.name,
        scope=reader.scope,
        limits=LimitsView(**asdict(reader.limits)),
        used=UsedView(**asdict(used)),
    )
