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
    name: Annotated[ModelName, Query(max_length=external.MAX_NAME, description="Name of the attack.")],
    submitter: Annotated[
        str | None,
        Query(pattern=tokens.NAME_PATTERN, description="Who found them; by default the token's owner."),
    ] = None,
    content_length: Annotated[int | None, Header(ge=0, include_in_schema=False)] = None,
) -> JobView:
    """The body is a safetensors file: 'adversarial' (K, channels, height, width) float32 in [0, 1], and 'index' (K,),
    the index of each example's clean image among the test images.

    A worker re-checks every example: norm, box, and the model's answer in float32. If a check fails, the job fails and
    names the first such point. If examples break points that had withstood all attacks, the entry's `external`
    accuracy falls, and they become part of its certificate.
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
    """Check the entry before gigabytes are sent. Returns the largest possible size of the file in bytes."""
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
            # This process was stopped for so long that the cleanup may have removed the file, which no row named yet.
            raise Conflict("the service was interrupted before it had stored the file; send it again")
        job_id = job.id
    with service.database.reading() as session:
        return job_view(jobs.get(session, job_id), None)
