"""ETags: a client that already has the current answer gets 304, without reading the rows again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import Response

import gkl


def _build() -> str:
    """A text that differs between builds, whose answers may differ for the same rows."""
    digest = hashlib.sha256(gkl.__version__.encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.*")):
        if path.suffix in (".py", ".html", ".css", ".js"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_BUILD = _build()


def tagged(request: Request, revision: str, reader: str = "") -> dict[str, str]:
    """The headers of an answer that stays the same until the revision changes.

    Args:
        request: its address is part of the tag: two different pages must never share an ETag.
        revision: of the rows that the answer is made of; read it before them.
        reader: the user, if the answer depends on them.
    """
    what = f"{_BUILD} {reader} {request.url.path}?{request.url.query} {revision}"
    tag = hashlib.sha256(what.encode()).hexdigest()[:32]
    return {"ETag": f'W/"{tag}"', "Cache-Control": "no-cache"}


def not_modified(request: Request, headers: dict[str, str]) -> Response | None:
    """The 304 answer if the client already has this tag; else None."""
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return None


NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "Unchanged since the ETag in If-None-Match."}}
"""Responses of such a route in the OpenAPI document."""
