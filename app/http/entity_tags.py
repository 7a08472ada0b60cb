"""Tags of answers, by which whoever has one already is told so without its rows being read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import Response

import gkl


def _build() -> str:
    """Another text whenever an answer may look otherwise for the same rows."""
    digest = hashlib.sha256(gkl.__version__.encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.*")):
        if path.suffix in (".py", ".html", ".css", ".js"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_BUILD = _build()


def tagged(request: Request, revision: str, reader: str = "") -> dict[str, str]:
    """The headers of an answer that is the same until the revision is another.

    Args:
        request: its address belongs to the tag, since two answers must never share one.
        revision: of what it is made of; read before that.
        reader: for whom it is, where that shows.
    """
    what = f"{_BUILD} {reader} {request.url.path}?{request.url.query} {revision}"
    tag = hashlib.sha256(what.encode()).hexdigest()[:32]
    return {"ETag": f'W/"{tag}"', "Cache-Control": "no-cache"}


def not_modified(request: Request, headers: dict[str, str]) -> Response | None:
    """The answer to somebody who has it already; else None."""
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return None


NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "It is still what the ETag of If-None-Match stands for."}
}
"""For the contract of such a route."""
