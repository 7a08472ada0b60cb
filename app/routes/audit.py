"""The audit trail, for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app import audit
from app.access import Admin
from app.routes.jobs import MAX_ID
from app.schemas import AuditPage, AuditView
from app.service import ServiceDep

router = APIRouter(prefix="/audit", tags=["administration"])


@router.get("", summary="Read who changed what, newest first")
def list_audit(
    service: ServiceDep,
    _: Admin,
    cursor: Annotated[int | None, Query(ge=1, le=MAX_ID, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> AuditPage:
    with service.database.reading() as session:
        found = audit.page(session, before_id=cursor, limit=limit + 1)
        return AuditPage(
            records=[AuditView.of(record) for record in found[:limit]],
            next_cursor=found[limit - 1].id if len(found) > limit else None,
        )
