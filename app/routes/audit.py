"""The audit trail, for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.accounts import audit
from app.accounts.views import audit_view
from app.http.access import Admin
from app.http.paging import NumberedCursor, link_next
from app.http.service import ServiceDep
from gkl.answers import AuditPage

router = APIRouter(prefix="/audit", tags=["administration"])


@router.get("", summary="Read who changed what, newest first")
def list_audit(
    *,
    request: Request,
    response: Response,
    service: ServiceDep,
    _: Admin,
    cursor: NumberedCursor = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> AuditPage:
    with service.database.reading() as session:
        found = audit.page(session, before_id=cursor, limit=limit + 1)
        following = found[limit - 1].id if len(found) > limit else None
        link_next(request, response, following)
        return AuditPage(records=[audit_view(record) for record in found[:limit]], next_cursor=following)
