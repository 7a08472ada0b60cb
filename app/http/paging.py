"""Lists that are sent in pages: how much of one, and where the next begins."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from app.http.parameters import MAX_ID

CURSOR_LENGTH = 2000

LinkedCursor = Annotated[
    str | None, Query(max_length=CURSOR_LENGTH, description="As the `Link` header of the page before names it.")
]
NumberedCursor = Annotated[int | None, Query(ge=1, le=MAX_ID, description="`next_cursor` of the page before.")]


def link_next(request: Request, response: Response, cursor: str | int | None) -> None:
    """Name the next page in the headers too (RFC 8288): a list that is a bare array has no other place for it."""
    if cursor is not None:
        # Relative to the request, whatever name and path a proxy gives the service.
        query = request.url.include_query_params(cursor=cursor).query
        response.headers["Link"] = f'<?{query}>; rel="next"'
