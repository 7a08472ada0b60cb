"""Reports: certificates of networks that are not uploaded."""

from __future__ import annotations

import logging
import time
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from app import jobs
from app.accounts import audit, quotas, tokens
from app.accounts.principals import Principal
from app.core.errors import Conflict
from app.evidence import reports
from app.http.access import Sender
from app.http.service import Service, ServiceDep
from app.jobs.views import job_view
from app.store import Incoming
from app.weights import uploads
from app.weights.receiving import receive
from gkl.answers import JobView
from gkl.spec import ModelName, Publication

_log = logging.getLogger(__name__)

router = APIRouter(prefix="/reports", tags=["leaderboards"])

_BODY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


class _Said(Publication):
    """What the board shows about a network, as query parameters."""

    name: ModelName
    """Name of the network."""

    architecture: Annotated[str, Query(max_length=100, pattern=r"^[^\x00-\x1f]*$")] = ""
    """In its owner's words."""

    submitter: Annotated[str | None, Query(pattern=tokens.NAME_PATTERN)] = None
    """The network's owner; by default the token's owner."""

    @property
    def publication(self) -> Publication:
        return Publication.model_validate(self.model_dump(include=set(Publication.model_fields)))


@router.post(
    "",
    status_code=202,
    summary="Send a certificate of a network of your own",
    response_description="The job that checks it, queued.",
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
async def report_verdict(
    *,
    service: ServiceDep,
    sender: Sender,
    request: Request,
    response: Response,
    background: BackgroundTasks,
    said: Annotated[_Said, Query()],
    content_length: Annotated[int | None, Header(ge=0, include_in_schema=False)] = None,
) -> JobView:
    """For a network that no worker can build. The body is a certificate written by
    `gkl.evaluate(...).save_certificate()`, about all test images of a data set.

    A worker re-checks norms, box, labels, clean images and counts. It cannot run the network, so the entry is marked
    'reported' and has no rank. A submitter has one entry per network and board: the newest.
    """
    submitter = sender.submitter(said.submitter)
    most = await run_in_threadpool(_room, service, submitter, content_length)
    with service.store.incoming() as incoming:
        await receive(service, request, incoming, max_bytes=most)
        view = await run_in_threadpool(_queue, service, sender, incoming, said, submitter)
    _log.info("job %d was sent", view.id, extra={"job_id": view.id})
    response.headers["Location"] = f"{service.settings.root_path}/api/v1/jobs/{view.id}"
    background.add_task(service.publish_pending, [view.id])
    return view


def _room(service: Service, submitter: str, announced_bytes: int | None) -> int:
    """The largest accepted size in bytes, checked before gigabytes are sent."""
    most = reports.most_bytes()
    with service.database.writing() as session:
        quotas.check_room_for_job(session, submitter)
        # A body without an announced length is checked while it arrives.
        expected = min(most, announced_bytes or 0)
        quotas.check_upload_fits(session, submitter, expected)
        uploads.check_room(service, session, expected)
        room = quotas.room_for_upload(session, submitter)
    return most if room is None else min(most, room)


def _queue(service: Service, sender: Principal, incoming: Incoming, said: _Said, submitter: str) -> JobView:
    incoming.flush()
    claims = reports.check_file(incoming.path)
    stored, stored_at = incoming.keep(), time.monotonic()
    with service.database.writing() as session:
        job = reports.create(
            session,
            claims,
            stored,
            name=said.name,
            architecture=said.architecture,
            publication=said.publication,
            submitter=submitter,
        )
        audit.record(session, sender.actor, "entry.report", f"job {job.id}", {"certificate": stored.sha256})
        if time.monotonic() - stored_at > service.settings.young_seconds / 2:
            # This process was stopped for so long that the cleanup may have removed the file, which no row named yet.
            raise Conflict("the service was interrupted before it had stored the file; send it again")
        job_id = job.id
    with service.database.reading() as session:
        return job_view(jobs.get(session, job_id), None)
