"""Receiving a file of weights in a request's body, and storing it once it is complete and checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from app.accounts import audit, quotas
from app.accounts.principals import Principal
from app.core.errors import Conflict, TooLarge, Unprocessable
from app.db.tables import PartialUpload
from app.http.service import Service
from app.jobs import job_files, weights_contents
from app.store import Incoming, StoredFile
from app.weights import uploads
from app.weights.views import upload_view
from gkl.answers import UploadView
from gkl.errors import InvalidInput
from gkl.formats.weights_format import check_weights_file

WRITE_BYTES = 1024 * 1024


async def receive(service: Service, request: Request, incoming: Incoming, *, max_bytes: int | None) -> None:
    """Write the request's body to a file, piece by piece.

    Raises:
        TooLarge: the body is longer than `max_bytes`.
        NoRoom: the disk has no room for more.
    """

    def write(piece: bytes) -> None:
        # Leaves room on the disk for running jobs.
        uploads.check_disk(service, len(piece))
        incoming.write(piece)

    waiting = bytearray()
    async for chunk in request.stream():
        waiting += chunk
        if max_bytes is not None and incoming.size_bytes + len(waiting) > max_bytes:
            raise TooLarge(f"the body is longer than the {max_bytes} bytes that are accepted now")
        if len(waiting) >= WRITE_BYTES:
            await run_in_threadpool(write, bytes(waiting))
            waiting.clear()
    await run_in_threadpool(write, bytes(waiting))


def keep(
    service: Service, sender: Principal, path: Path, store: Callable[[], StoredFile], *, of: PartialUpload | None = None
) -> UploadView:
    """Check and store a complete file.

    Args:
        service: the service.
        sender: whose quota it counts against, unless `of` is given.
        path: the file.
        store: a function that moves it into the store.
        of: the upload whose pieces it is made of; its submitter's quota counts.

    Raises:
        Unprocessable: it is not a file of weights.
        TooMany: the submitter's quota of stored bytes is exceeded.
    """
    try:
        found = check_weights_file(path, "the file")
        contents = weights_contents.read(path) if found == "safetensors" else None
    except InvalidInput as error:
        raise Unprocessable(f"body: {error}") from error
    stored, stored_at = store(), time.monotonic()
    submitter = sender.name if of is None else of.submitter
    with service.database.writing() as session:
        quotas.lock_submitter(session, submitter)
        if of is not None:
            session.get_one(PartialUpload, of.id).sha256 = stored.sha256
        view = upload_view(job_files.record_upload(session, stored, found, submitter, contents=contents))
        # Checked after adding it: sending the same file again costs nothing.
        quotas.check_upload_fits(session, submitter, 0)
        audit.record(session, sender.actor, "weights.send", f"weights {stored.sha256}", {"bytes": stored.size_bytes})
        if time.monotonic() - stored_at > service.settings.young_seconds / 2:
            # This process was stopped for so long that the cleanup may have removed the file, which no row named yet.
            raise Conflict("the service was interrupted before it had stored the file; send it again")
        return view
