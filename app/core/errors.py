"""The service's errors. `app.http.problems` sends them over HTTP in one format.

    ServiceError
    ├── Unauthorized         401
    ├── Forbidden            403
    ├── NotFound             404
    ├── Conflict             409
    │   └── StaleAttempt            a worker's write to a job that it no longer holds
    ├── OtherVersion         412    of the upload protocol
    ├── TooLarge             413
    ├── WrongType            415
    ├── Unprocessable        422
    ├── TooMany              429    with how long to wait
    ├── StoreAway            503    with how long to wait
    └── NoRoom               507

Each has a status, a code for programs, and a sentence that says what to do. No import of FastAPI here, since workers
raise them too.
"""

from __future__ import annotations

from http import HTTPStatus


class ServiceError(Exception):
    """Base of the service's errors."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    code = "internal"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {}


class Unauthorized(ServiceError):
    status = HTTPStatus.UNAUTHORIZED
    code = "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(ServiceError):
    status = HTTPStatus.FORBIDDEN
    code = "forbidden"


class NotFound(ServiceError):
    status = HTTPStatus.NOT_FOUND
    code = "not_found"


class Conflict(ServiceError):
    status = HTTPStatus.CONFLICT
    code = "conflict"


class StaleAttempt(Conflict):
    code = "stale_attempt"


class Unprocessable(ServiceError):
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "invalid_input"


class OtherVersion(ServiceError):
    status = HTTPStatus.PRECONDITION_FAILED
    code = "other_version"


class TooLarge(ServiceError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "content_too_large"


class WrongType(ServiceError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "wrong_type"


class StoreAway(ServiceError):
    """The artifact store cannot be used now."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "store_away"

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": "5"}


class NoRoom(ServiceError):
    """The disk is full, or would be."""

    status = HTTPStatus.INSUFFICIENT_STORAGE
    code = "no_room"


class TooMany(ServiceError):
    """A limit is reached; try again later."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "too_many"

    def __init__(self, sentence: str, *, retry_after_seconds: int) -> None:
        super().__init__(sentence)
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_seconds)}
