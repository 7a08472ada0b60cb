"""The workers, their devices and their jobs."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.http.paging import LinkedCursor, link_next
from app.http.service import ServiceDep
from app.jobs import workers
from app.jobs.views import worker_view
from gkl.answers import WorkerView

router = APIRouter(prefix="/workers", tags=["workers"])


@router.get("", summary="List the workers")
def list_workers(
    *,
    request: Request,
    response: Response,
    service: ServiceDep,
    cursor: LinkedCursor = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[WorkerView]:
    """Sorted by host. A worker that stops by itself disappears from here; a lost one stays for a day."""
    with service.database.reading() as session:
        lease = timedelta(seconds=service.settings.lease_seconds)
        found, following = workers.page(session, lease=lease, limit=limit, cursor=cursor)
        link_next(request, response, following)
        return [worker_view(status) for status in found]
