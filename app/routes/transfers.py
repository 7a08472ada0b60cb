"""Transfers: adversarial examples of one entry, tried on the network of another."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response

from app import jobs
from app.accounts import tokens
from app.boards import ranking
from app.evidence import transfers
from app.http.access import Sender
from app.http.paging import NumberedCursor, link_next
from app.http.parameters import EntryId
from app.http.service import ServiceDep
from app.jobs.views import job_view
from gkl.answers import JobView, TransferRequest, TransferView

router = APIRouter(prefix="/entries", tags=["leaderboards"])


@router.post(
    "/{entry_id}/transfers",
    status_code=202,
    summary="Try another entry's adversarial examples on an entry",
    response_description="The job that measures it, queued.",
)
def measure_transfer(
    *,
    service: ServiceDep,
    sender: Sender,
    response: Response,
    background: BackgroundTasks,
    entry_id: EntryId,
    body: TransferRequest,
    submitter: Annotated[
        str | None, Query(pattern=tokens.NAME_PATTERN, description="Whose job it is; by default the token's owner.")
    ] = None,
) -> JobView:
    """Count how many adversarial examples of `source` also break this entry's network: it gets the clean image right
    and the adversarial image wrong. Forward passes only. The reverse direction is a job of its own.

    Both must have the same data set and norm, and the budget of `source` must not be larger than this entry's.
    Examples that break points which had withstood all attacks lower this entry's `external` accuracy, as an external
    attack does.
    """
    job_id = transfers.request(
        service.database, body.source, entry_id, submitter=sender.submitter(submitter), by=sender.actor
    )
    response.headers["Location"] = f"{service.settings.root_path}/api/v1/jobs/{job_id}"
    background.add_task(service.publish_pending, [job_id])
    with service.database.reading() as session:
        return job_view(jobs.get(session, job_id), None)


@router.get("/{entry_id}/transfers", summary="List the transfers from and to an entry")
def list_transfers(
    *,
    request: Request,
    response: Response,
    service: ServiceDep,
    entry_id: EntryId,
    cursor: NumberedCursor = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> list[TransferView]:
    """Newest first. The `Link` header leads to the next, older page."""
    with service.database.reading() as session:
        ranking.get(session, entry_id)
        found = transfers.page(session, entry_id, before_id=cursor, limit=limit + 1)
        link_next(request, response, found[limit - 1].id if len(found) > limit else None)
        return [transfers.view(session, each) for each in found[:limit]]
