"""Weights that are sent to be evaluated."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.concurrency import run_in_threadpool

from app import job_files
from app.artifacts import Incoming
from app.errors import Conflict, Unprocessable
from app.schemas import UploadView
from app.service import Service, ServiceDep
from gkl.errors import InvalidInput
from gkl.spec import SHA256_PATTERN
from gkl.weights_format import check_weights_file

router = APIRouter(prefix="/weights", tags=["weights"])

_WRITE_BYTES = 1024 * 1024
_BODY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.post(
    "",
    status_code=201,
    summary="Send weights",
    response_description="The file as it is stored, by its sha256.",
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
async def send_weights(service: ServiceDep, request: Request, response: Response) -> UploadView:
    """The body is the file: safetensors, or a state dict of torch.save. The same file again is the same upload.

    `curl --data-binary @model.safetensors -H 'Content-Type: application/octet-stream' URL`; then send a job with its
    sha256 as `weights`. What can be told without the architecture is checked at once, the rest by the run,
    under the one that the job names.
    """
    with service.store.incoming() as incoming:
        await receive(request, incoming)
        upload = await run_in_threadpool(_keep, service, incoming)
    response.headers["Location"] = f"/api/v1/weights/{upload.sha256}"
    return upload


async def receive(request: Request, incoming: Incoming) -> None:
    """The request's body, piece by piece."""
    waiting = bytearray()
    async for chunk in request.stream():
        waiting += chunk
        if len(waiting) >= _WRITE_BYTES:
            await run_in_threadpool(incoming.write, bytes(waiting))
            waiting.clear()
    await run_in_threadpool(incoming.write, bytes(waiting))


def _keep(service: Service, incoming: Incoming) -> UploadView:
    incoming.flush()
    try:
        found = check_weights_file(incoming.path, "the file")
    except InvalidInput as error:
        raise Unprocessable(f"body: {error}") from error
    stored = incoming.keep()
    with service.database.writing() as session:
        view = UploadView.of(job_files.record_upload(session, stored, found))
        if not service.store.holds(stored.sha256):
            # This process was stopped for so long that the file was taken for one that nobody names.
            raise Conflict("the file was removed before it was noted, send it again")
        return view


@router.get("/{sha256}", summary="Look at weights that were sent")
def get_weights(service: ServiceDep, sha256: Annotated[str, Path(pattern=SHA256_PATTERN)]) -> UploadView:
    with service.database.reading() as session:
        return UploadView.of(job_files.upload(session, sha256))
