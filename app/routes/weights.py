"""Weights that are sent to be evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from app.accounts import audit, quotas
from app.core.errors import Conflict, TooLarge, Unprocessable
from app.db.tables import PartialUpload, Upload
from app.http.access import Principal, Reader, Sender
from app.http.service import Service, ServiceDep
from app.jobs import job_files
from app.store import Incoming, StoredFile
from app.weights import uploads, weights_contents
from app.weights.views import upload_view
from gkl.answers import Scope, UploadView
from gkl.errors import InvalidInput
from gkl.spec import SHA256_PATTERN
from gkl.weights_format import check_weights_file

router = APIRouter(prefix="/weights", tags=["weights"])

WRITE_BYTES = 1024 * 1024
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
    """The body is the file: safetensors, or a state dict of torch.save. The same file again is the same upload.

    `curl --data-binary @model.safetensors -H 'Content-Type: application/octet-stream' URL`; then send a job with its
    sha256 as `weights`. What can be told without the architecture is checked at once; the names and
    shapes of safetensors when a job names them with an architecture; the rest by the run. Over a connection that may
    break, send it in pieces: /api/v1/uploads.
    """
    # Before gigabytes are sent.
    room = await run_in_threadpool(_room, service, sender.name, content_length)
    with service.store.incoming() as incoming:
        await receive(service, request, incoming, max_bytes=room)
        incoming.flush()
        upload = await run_in_threadpool(keep, service, sender, incoming.path, incoming.keep)
    response.headers["Location"] = f"{service.settings.root_path}/api/v1/weights/{upload.sha256}"
    return upload


async def receive(service: Service, request: Request, incoming: Incoming, *, max_bytes: int | None) -> None:
    """The request's body, piece by piece.

    Raises:
        TooLarge: it is longer than it may be.
        NoRoom: the disk has no room for more.
    """

    def write(piece: bytes) -> None:
        # The rest of the disk is for whoever works here already.
        uploads.check_disk(service, len(piece))
        incoming.write(piece)

    waiting = bytearray()
    async for chunk in request.stream():
        waiting += chunk
        if max_bytes is not None and incoming.size_bytes + len(waiting) > max_bytes:
            raise TooLarge(f"the body is longer than the {max_bytes} bytes that may come here now")
        if len(waiting) >= WRITE_BYTES:
            await run_in_threadpool(write, bytes(waiting))
            waiting.clear()
    await run_in_threadpool(write, bytes(waiting))


def _room(service: Service, submitter: str, announced_bytes: int) -> int | None:
    """How many bytes may come."""
    with service.database.reading() as session:
        uploads.check_room(service, session, announced_bytes)
        quotas.check_upload_fits(session, submitter, announced_bytes)
        return quotas.room_for_upload(session, submitter)


def keep(
    service: Service, sender: Principal, path: Path, store: Callable[[], StoredFile], *, of: PartialUpload | None = None
) -> UploadView:
    """A file that has come whole.

    Args:
        service: that keeps it.
        sender: who is charged for it, if not whose `of` is.
        path: where it lies.
        store: takes it into the store.
        of: the upload whose pieces it is made of.

    Raises:
        Unprocessable: it is not one of weights.
        TooMany: more would be kept of the submitter's than may be.
    """
    try:
        found = check_weights_file(path, "the file")
        contents = weights_contents.read(path) if found == "safetensors" else None
    except InvalidInput as error:
        raise Unprocessable(f"body: {error}") from error
    stored, stored_at = store(), time.monotonic()
    submitter = sender.name if of is None else of.submitter
    with service.database.writing() as session:
        quotas.take_turn(session, submitter)
        if of is not None:
            session.get_one(PartialUpload, of.id).sha256 = stored.sha256
        view = upload_view(job_files.record_upload(session, stored, found, submitter, contents=contents))
        # With them already there: the same file again costs nothing.
        quotas.check_upload_fits(session, submitter, 0)
        audit.record(session, sender.actor, "weights.send", f"weights {stored.sha256}", {"bytes": stored.size_bytes})
        if time.monotonic() - stored_at > service.settings.young_seconds / 2:
            # This process was stopped for so long that the file may be taken for one that nobody names.
            raise Conflict("the service was stopped before it had noted the file, send it again")
        return view


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
            "description": "The file: safetensors, or as it was sent.",
        }
    },
)
def fetch_weights(
    service: ServiceDep, reader: Reader, sha256: Annotated[str, InPath(pattern=SHA256_PATTERN)]
) -> FileResponse:
    """Weights that a training made here, for all who may read; what somebody sent, for them and for admins."""
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
    """One's own, if no job and no measured model needs them. Admins can remove anyone's."""
    with service.database.writing() as session:
        uploads.remove(session, sha256, None if sender.may(Scope.ADMIN) else sender.name)
        audit.record(session, sender.actor, "weights.remove", f"weights {sha256}")
    return Response(status_code=204)
