"""The workers: who is there, on what device, doing what."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter

from app import workers
from app.schemas import WorkerView
from app.service import ServiceDep

router = APIRouter(prefix="/workers", tags=["workers"])


@router.get("", summary="List the workers")
def list_workers(service: ServiceDep) -> list[WorkerView]:
    """By host. One that stops in order is gone from here; one that was lost stays for a day."""
    with service.database.reading() as session:
        lease = timedelta(seconds=service.settings.lease_seconds)
        return [WorkerView.of(status) for status in workers.all_of_them(session, lease=lease)]
