"""Uploading, downloading and removing weights."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from app.accounts import audit, quotas
from app.db.tables import Upload
from app.http.access import Reader, Sender
from app.http.service import Service, ServiceDep
from app.jobs import job_files
from app.weights import uploads
from app.weights.receiving import keep, receive
from app.weights.views import upload_view
from gkl.answers import Scope, UploadView
from gkl.spec import SHA256_PATTERN

router = APIRouter(prefix="/weights", tags=["weights"])
_BODY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.post(
    "",
    status_code=201,
    summary="Send weights",
    response_description="The file as it is stored, by its sha256.",
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
async def send_weights(
    service: ServiceDep,
    sender: Sender,
    request: Request,
    response: Response,
    content_length: Annotated[int, Header(ge=0, include_in_schema=False)] = 0,
) -> UploadView:
    """The body is the file: safetensors, or a state dict from torch.save. The same file again is the same upload.

    `curl --data-binary @model.safetensors -H 'Content-Type: application/octet-stream' URL`; then send a job with its
    sha256 as `weights`. The file's format is checked at once; the names and shapes of safetensors when a job names
    them with an architecture; the rest by the run. Over an unreliable connection, send it in pieces: /api/v1/uploads.
    """
    # Before gigabytes are sent.
    room = await run_in_threadpool(_room, service, sender.name, content_length)
    with service.store.incoming() as incoming:
        await receive(service, request, incoming, max_bytes=room)
        incoming.flush()
        upload = await run_in_threadpool(keep, service, sender, incoming.path, incoming.keep)
    response.headers["Location"] = f"{service.settings.root_path}/api/v1/weights/{upload.sha256}"
    return upload


def _room(service: Service, submitter: str, announced_bytes: int) -> int | None:
    """The largest accepted size in bytes; None if there is no limit."""
    with service.database.reading() as session:
        uploads.check_room(service, session, announced_bytes)
        quotas.check_upload_fits(session, submitter, announced_bytes)
        return quotas.room_for_upload(session, submitter)


@router.get("/{sha256}", summary="Look at weights that were sent")
def get_weights(service: ServiceDep, sha256: Annotated[str, InPath(pattern=SHA256_PATTERN)]) -> UploadView:
    with service.database.reading() as session:
        return upload_view(job_files.upload(session, sha256))


@router.get(
    "/{sha256}/file",
    summary="Fetch weights",
    response_class=FileResponse,
    responses={
        200: {
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            "description": "The file: safetensors, or the format that was sent.",
        }
    },
)
def fetch_weights(
    service: ServiceDep, reader: Reader, sha256: Annotated[str, InPath(pattern=SHA256_PATTERN)]
) -> FileResponse:
    """Everybody with the scope 'read' can fetch weights trained here; only their sender and admins uploaded ones."""
    with service.database.reading() as session:
        if not job_files.were_trained_here(session, sha256):
            uploads.check_may_fetch(session, sha256, None if reader.may(Scope.ADMIN) else reader.name)
        sent = session.get(Upload, sha256)
        extension = "safetensors" if sent is None or sent.format == "safetensors" else "pt"
    return FileResponse(
        service.store.path(sha256),
        media_type="application/octet-stream",
        filename=f"weights-{sha256[:16]}.{extension}",
        headers={"X-Content-Type-Options": "nosniff"},
    )


@router.delete("/{sha256}", status_code=204, summary="Remove weights that were sent", response_class=Response)
def remove_weights(
    service: ServiceDep, sender: Sender, sha256: Annotated[str, InPath(pattern=SHA256_PATTERN)]
) -> Response:
    """Remove your own weights, if no job and no measured model needs them. Admins can remove all."""
    with service.database.writing() as session:
        uploads.remove(session, sha256, None if sender.may(Scope.ADMIN) else sender.name)
        audit.record(session, sender.actor, "weights.remove", f"weights {sha256}")
    return Response(status_code=204)
