"""Large files in pieces, by the tus protocol 1.0 with creation, termination and expiration: any tus client can send.

POST makes an upload, PATCH sends bytes from an offset on, HEAD tells that offset after a connection broke. The PATCH
that sends the last byte answers with what the file is now: weights, by their sha256.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Annotated

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool

from app import uploads
from app.access import Principal, Sender
from app.errors import TooLarge, Unprocessable, WrongType
from app.routes.weights import WRITE_BYTES, keep
from app.schemas import UploadView
from app.service import Service, ServiceDep
from app.tables import PartialUpload, Scope

router = APIRouter(prefix="/uploads", tags=["weights"])

VERSION = "1.0.0"
_PIECE = "application/offset+octet-stream"
_TUS = {"Tus-Resumable": VERSION}

UploadId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="As `Location` named it.")]


@router.post("", status_code=201, summary="Begin to send weights in pieces", response_class=Response)
def begin_upload(
    service: ServiceDep,
    sender: Sender,
    upload_length: Annotated[int, Header(ge=1, le=2**62, description="Bytes of the whole file.")],
) -> Response:
    """`Location` is where the bytes are sent. What is begun and then left alone is removed after some days."""
    limit = service.settings.max_weights_bytes
    if upload_length > limit:
        raise TooLarge(f"a file of {upload_length} bytes is larger than the {limit} bytes that this service accepts")
    upload = uploads.begin(service, sender.name, upload_length)
    headers = {"Location": f"/api/v1/uploads/{upload.id}", "Upload-Offset": "0", **_state(service, upload)}
    return Response(status_code=201, headers=headers)


@router.head("/{upload_id}", summary="Where to go on", response_class=Response)
def look_at_upload(service: ServiceDep, sender: Sender, upload_id: UploadId) -> Response:
    """`Upload-Offset` is how many bytes are here, and where the next piece begins."""
    with service.database.reading() as session:
        upload = uploads.find(session, upload_id, _whose(sender))
    offset = str(uploads.offset(service, upload_id))
    headers = {"Upload-Offset": offset, "Cache-Control": "no-store", **_state(service, upload)}
    return Response(status_code=200, headers=headers)


@router.patch(
    "/{upload_id}",
    summary="Send a piece",
    response_class=Response,
    responses={
        200: {"model": UploadView, "description": "The last piece: the file as it is kept."},
        204: {"description": "More is to come, from `Upload-Offset` on."},
    },
    status_code=204,
    openapi_extra={
        "requestBody": {"required": True, "content": {_PIECE: {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def send_piece(
    *,
    service: ServiceDep,
    sender: Sender,
    request: Request,
    upload_id: UploadId,
    upload_offset: Annotated[int, Header(ge=0, le=2**62, description="Where the piece begins.")],
) -> Response:
    if request.headers.get("content-type") != _PIECE:
        raise WrongType(f"a piece is sent with Content-Type: {_PIECE}")
    upload = await run_in_threadpool(_find, service, sender, upload_id)
    with uploads.appending(service, upload_id, upload_offset) as file:
        # A connection that breaks ends this loop with an error: what had come by then is kept.
        waiting = bytearray()
        left = upload.size_bytes - upload_offset
        try:
            async for chunk in request.stream():
                left -= len(chunk)
                if left < 0:
                    raise Unprocessable(f"these are more bytes than the {upload.size_bytes} that were announced")
                waiting += chunk
                if len(waiting) >= WRITE_BYTES:
                    await run_in_threadpool(file.write, bytes(waiting))
                    waiting.clear()
        finally:
            if left >= 0:
                await run_in_threadpool(file.write, bytes(waiting))
    if left > 0:
        await run_in_threadpool(uploads.touch, service.database, upload_id)
        offset = str(uploads.offset(service, upload_id))
        return Response(status_code=204, headers={"Upload-Offset": offset, **_state(service, upload)})
    view = await run_in_threadpool(_end, service, sender, upload)
    return Response(
        view.model_dump_json(),
        media_type="application/json",
        headers={"Upload-Offset": str(upload.size_bytes), "Content-Location": f"/api/v1/weights/{view.sha256}", **_TUS},
    )


@router.delete("/{upload_id}", status_code=204, summary="Give an upload up", response_class=Response)
def give_up_upload(service: ServiceDep, sender: Sender, upload_id: UploadId) -> Response:
    _find(service, sender, upload_id)
    uploads.end(service, upload_id)
    return Response(status_code=204, headers=_TUS)


def _whose(sender: Principal) -> str | None:
    return None if sender.may(Scope.ADMIN) else sender.name


def _find(service: Service, sender: Principal, upload_id: str) -> PartialUpload:
    with service.database.reading() as session:
        return uploads.find(session, upload_id, _whose(sender))


def _end(service: Service, sender: Principal, upload: PartialUpload) -> UploadView:
    """A file that is refused is not kept, nor is the upload: sending it again would not better it."""
    try:
        with service.store.incoming() as incoming:
            with uploads.whole_file(service, upload.id).open("rb") as file:
                while chunk := file.read(WRITE_BYTES):
                    incoming.write(chunk)
            return keep(service, incoming, upload.submitter, sender.actor)
    finally:
        uploads.end(service, upload.id)


def _state(service: Service, upload: PartialUpload) -> dict[str, str]:
    expires: datetime = upload.touched_at + timedelta(days=service.settings.upload_retention_days)
    return {
        "Upload-Length": str(upload.size_bytes),
        "Upload-Expires": format_datetime(expires, usegmt=True),
        **_TUS,
    }
