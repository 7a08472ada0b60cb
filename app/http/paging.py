"""Paging of lists: the cursor parameters, and the link to the next page."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from app.http.parameters import MAX_ID

CURSOR_LENGTH = 2000

LinkedCursor = Annotated[
    str | None, Query(max_length=CURSOR_LENGTH, description="From the `Link` header of the previous page.")
]
NumberedCursor = Annotated[int | None, Query(ge=1, le=MAX_ID, description="`next_cursor` of the previous page.")]


def link_next(request: Request, response: Response, cursor: str | int | None) -> None:
    """Add a `Link` header to the next page (RFC 8288): an answer that is a bare array cannot name it otherwise."""
    if cursor is not None:
        # Relative, so that it is right behind any proxy.
        query = request.url.include_query_params(cursor=cursor).query
        response.headers["Link"] = f'<?{query}>; rel="next"'
