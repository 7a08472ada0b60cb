"""External attacks: adversarial examples against an entry."""

from __future__ import annotations

import logging
import time
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from app import jobs
from app.accounts import audit, quotas, tokens
from app.accounts.principals import Principal
from app.boards import ranking
from app.core.errors import Conflict
from app.evidence import external
from app.http.access import Sender
from app.http.parameters import EntryId
from app.http.service import Service, ServiceDep
from app.jobs.views import job_view
from app.store import Incoming
from app.weights import uploads
from app.weights.receiving import receive
from gkl.answers import JobView
from gkl.spec import ModelName

_log = logging.getLogger(__name__)

router = APIRouter(prefix="/entries", tags=["leaderboards"])

_BODY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.post(
    "/{entry_id}/attacks",
    status_code=202,
    summary="Send adversarial examples against an entry",
    response_description="The job that checks them, queued.",
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
async def attack_entry(
    *,
    service: ServiceDep,
    sender: Sender,
    request: Request,
    response: Response,
    background: BackgroundTasks,
    entry_id: EntryId,
    name: Annotated[ModelName, Query(max_length=external.MAX_NAME, description="What the attack is called.")],
    submitter: Annotated[
        str | None,
        Query(pattern=tokens.NAME_PATTERN, description="Who found them; by default whose the token is."),
    ] = None,
    content_length: Annotated[int | None, Header(ge=0, include_in_schema=False)] = None,
) -> JobView:
    """The body is a safetensors file: 'adversarial' (K, channels, height, width) float32 in [0, 1], and 'index' (K,),
    the place of each one's clean image among the test images.

    A worker re-checks every example: norm, box, and the model's answer in float32. If one does not hold the job fails
    with the first such point. If they break points that stand, the entry's `external` accuracy falls, and they
    become part of its certificate.
    """
    finder = sender.submitter(submitter)
    most = await run_in_threadpool(_check_entry, service, entry_id, finder, content_length)
    with service.store.incoming() as incoming:
        await receive(service, request, incoming, max_bytes=most)
        view = await run_in_threadpool(_queue, service, sender, incoming, entry_id, {"name": name, "submitter": finder})
    _log.info("job %d was sent", view.id, extra={"job_id": view.id})
    response.headers["Location"] = f"{service.settings.root_path}/api/v1/jobs/{view.id}"
    background.add_task(service.publish_pending, [view.id])
    return view


def _check_entry(service: Service, entry_id: int, finder: str, announced_bytes: int | None) -> int:
    """Before gigabytes are sent; returns how many bytes as many examples as there are points can have."""
    with service.database.writing() as session:
        entry, _, _ = external.check_entry(session, entry_id)
        quotas.check_room_for_job(session, finder)
        most = external.most_bytes(entry)
        uploads.check_room(service, session, most if announced_bytes is None else min(most, announced_bytes))
    return most


def _queue(service: Service, sender: Principal, incoming: Incoming, entry_id: int, said: dict[str, str]) -> JobView:
    incoming.flush()
    with service.database.reading() as session:
        entry = ranking.get(session, entry_id).entry
        external.check_file(incoming.path, entry)
    stored, stored_at = incoming.keep(), time.monotonic()
    with service.database.writing() as session:
        job = external.create(session, entry_id, stored, **said)
        audit.record(session, sender.actor, "entry.attack", f"entry {entry_id}", {"job": job.id})
        if time.monotonic() - stored_at > service.settings.young_seconds / 2:
            # This process was stopped for so long that the file may be taken for one that nobody names.
            raise Conflict("the service was stopped before it had noted the file, send it again")
        job_id = job.id
    with service.database.reading() as session:
        return job_view(jobs.get(session, job_id), None)
