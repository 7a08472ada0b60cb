"""Which class of errors a status stands for."""

from __future__ import annotations

from gkl.client import ClientError, Conflict, Invalid, NotFound, Refused, TooManyRequests, Unavailable
from gkl.client.errors import class_of


def test_the_class_of_each_status() -> None:
    found = {status: class_of(status) for status in (401, 403, 404, 409, 413, 422, 429, 500, 503)}
    assert found == {
        401: Refused,
        403: Refused,
        404: NotFound,
        409: Conflict,
        413: ClientError,
        422: Invalid,
        429: TooManyRequests,
        500: Unavailable,
        503: Unavailable,
    }
