"""The service's errors. `app.problems` gives them their one shape over HTTP.

    ServiceError
    ├── Forbidden            403
    ├── NotFound             404
    ├── Conflict             409
    │   └── StaleAttempt            a worker's write to a job that is no longer its own
    └── Unprocessable        422

Each carries its status, a code for programs, and a sentence that says what to do. Free of FastAPI, since
workers raise them too.
"""

from __future__ import annotations

from http import HTTPStatus


class ServiceError(Exception):
    """Base of the service's errors."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    code = "internal"


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
