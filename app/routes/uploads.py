"""Large files in pieces, by the tus protocol 1.0 with creation, termination and expiration: any tus client can be used.

POST creates an upload, PATCH sends bytes from an offset on, HEAD returns that offset after a broken connection. The
PATCH that sends the last byte answers with the stored file: weights, by their sha256.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BeforeValidator

from app.accounts.principals import Principal
from app.core.errors import Conflict, OtherVersion, TooLarge, Unprocessable, WrongType
from app.db.tables import PartialUpload
from app.http.access import Sender
from app.http.service import Service, ServiceDep
from app.jobs import job_files
from app.weights import uploads
from app.weights.receiving import WRITE_BYTES, keep
from app.weights.views import upload_view
from gkl.answers import Scope, UploadView


def _same_version(
    tus_resumable: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> None:
    if tus_resumable not in (None, VERSION):
        raise OtherVersion(f"this service speaks version {VERSION} of tus, not {tus_resumable}")


router = APIRouter(prefix="/uploads", tags=["weights"], dependencies=[Depends(_same_version)])

VERSION = "1.0.0"
_PIECE = "application/offset+octet-stream"
_TUS = {"Tus-Resumable": VERSION}


def _plain_digits(text: object) -> object:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]+", text):
        raise ValueError("write a whole number with the digits 0 to 9 only")
    return text


# As the protocol requires; pydantic would also accept a sign, a fraction of zero and underscores.
_Digits = BeforeValidator(_plain_digits)

UploadId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="The last part of `Location`.")]


@router.post("", status_code=201, summary="Begin to send weights in pieces", response_class=Response)
def begin_upload(
    service: ServiceDep,
    sender: Sender,
    upload_length: Annotated[int, _Digits, Header(ge=1, le=2**62, description="Bytes of the whole file.")],
) -> Response:
    """Send the bytes to `Location`. An upload that is left unfinished is removed after some days."""
    limit = service.settings.max_weights_bytes
    if upload_length > limit:
        raise TooLarge(f"a file of {upload_length} bytes is larger than the {limit} bytes that this service accepts")
    upload = uploads.begin(service, sender.name, upload_length)
    headers = {
        "Location": f"{service.settings.root_path}/api/v1/uploads/{upload.id}",
        "Upload-Offset": "0",
        **_state(service, upload),
    }
    return Response(status_code=201, headers=headers)


@router.options("", status_code=204, summary="See the supported parts of tus", response_class=Response)
@router.options("/{upload_id}", status_code=204, include_in_schema=False, response_class=Response)
def options(service: ServiceDep, _: Sender) -> Response:
    extensions = "creation,termination,expiration"
    most = str(service.settings.max_weights_bytes)
    said = {"Tus-Version": VERSION, "Tus-Extension": extensions, "Tus-Max-Size": most}
    return Response(status_code=204, headers=_TUS | said)


@router.head("/{upload_id}", summary="See where to continue", response_class=Response)
def look_at_upload(service: ServiceDep, sender: Sender, upload_id: UploadId) -> Response:
    """`Upload-Offset` is the number of stored bytes, and where the next piece begins."""
    with service.database.reading() as session:
        upload = uploads.find(session, upload_id, _whose(sender))
    offset = upload.size_bytes if upload.sha256 else uploads.offset(service, upload_id)
    headers = {"Upload-Offset": str(offset), "Cache-Control": "no-store", **_state(service, upload)}
    return Response(status_code=200, headers=headers)


@router.patch(
    "/{upload_id}",
    summary="Send a piece",
    response_class=Response,
    responses={
        200: {"model": UploadView, "description": "After the last piece: the stored file."},
        204: {"description": "Send more, from `Upload-Offset` on."},
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
    upload_offset: Annotated[int, _Digits, Header(ge=0, le=2**62, description="Where the piece begins.")],
) -> Response:
    """An empty piece at the end of a complete upload returns the stored file once more."""
    if request.headers.get("content-type") != _PIECE:
        raise WrongType(f"send a piece with Content-Type: {_PIECE}")
    upload = await run_in_threadpool(_find, service, sender, upload_id)
    if upload.sha256 is not None:
        if upload_offset != upload.size_bytes:
            raise Conflict(f"this upload is already complete; it has {upload.size_bytes} bytes")
        return _became(service, upload, await run_in_threadpool(_kept, service, upload.sha256))
    with uploads.growing(service, upload_id, upload_offset) as file:
        await run_in_threadpool(uploads.check_may_go_on, service, upload)
        try:
            await _write(request, file, upload.size_bytes)
        finally:
            # An empty piece must not keep an upload alive for ever.
            if file.size_bytes > upload_offset:
                await run_in_threadpool(uploads.touch, service.database, upload_id)
        if file.size_bytes < upload.size_bytes:
            headers = {"Upload-Offset": str(file.size_bytes), **_state(service, upload)}
            return Response(status_code=204, headers=headers)
        # The file stays locked until this has ended: a piece that is sent again meanwhile gets 409.
        return _became(service, upload, await run_in_threadpool(_end, service, sender, upload, file))


async def _write(request: Request, file: uploads.Growing, size_bytes: int) -> None:
    """Write the body to the file; when a connection breaks, the bytes received so far remain."""
    waiting = bytearray()
    try:
        async for chunk in request.stream():
            if file.size_bytes + len(waiting) + len(chunk) > size_bytes:
                raise Unprocessable(f"the upload has more bytes than the {size_bytes} that were announced")
            waiting += chunk
            if len(waiting) >= WRITE_BYTES:
                piece, waiting = bytes(waiting), bytearray()
                await run_in_threadpool(file.write, piece)
    finally:
        await run_in_threadpool(file.write, bytes(waiting))


@router.delete("/{upload_id}", status_code=204, summary="Delete an unfinished upload", response_class=Response)
def give_up_upload(service: ServiceDep, sender: Sender, upload_id: UploadId) -> Response:
    _find(service, sender, upload_id)
    uploads.give_up(service, upload_id)
    return Response(status_code=204, headers=_TUS)


def _whose(sender: Principal) -> str | None:
    return None if sender.may(Scope.ADMIN) else sender.name


def _find(service: Service, sender: Principal, upload_id: str) -> PartialUpload:
    with service.database.reading() as session:
        return uploads.find(session, upload_id, _whose(sender))


def _kept(service: Service, sha256: str) -> UploadView:
    with service.database.reading() as session:
        return upload_view(job_files.upload(session, sha256))


def _end(service: Service, sender: Principal, upload: PartialUpload, file: uploads.Growing) -> UploadView:
    """Check and store a complete file. A refused file is deleted: sending it again would not help. After a temporary
    error, such as a database that is down, the upload remains."""
    try:
        view = keep(service, sender, file.path, lambda: service.store.adopt(file.path), of=upload)
    except Unprocessable:
        uploads.give_up(service, upload.id)
        raise
    uploads.forget_pieces(service, upload.id)
    return view


def _became(service: Service, upload: PartialUpload, view: UploadView) -> Response:
    return Response(
        view.model_dump_json(),
        media_type="application/json",
        headers={
            "Upload-Offset": str(upload.size_bytes),
            "Content-Location": f"{service.settings.root_path}/api/v1/weights/{view.sha256}",
            **_TUS,
        },
    )


def _state(service: Service, upload: PartialUpload) -> dict[str, str]:
    expires: datetime = upload.touched_at + timedelta(days=service.settings.upload_retention_days)
    return {
        "Upload-Length": str(upload.size_bytes),
        "Upload-Expires": format_datetime(expires, usegmt=True),
        **_TUS,
    }
