"""The errors of the client, each with a sentence that says what to do.

    ClientError
    ├── Unreachable           nothing answers at the address
    ├── NotTheService         something else answers: a proxy, or another program
    ├── Refused          401, 403   the token is missing, unknown, or does not allow it
    ├── NotFound         404
    ├── Conflict         409   the current state does not allow it: a job that has ended cannot be cancelled
    ├── Invalid          422   the request cannot be used; `errors` lists each field at fault
    ├── TooManyRequests  429   a limit is reached; `retry_after` says when to try again
    └── Unavailable      5xx   a part of the service is down or has failed; the same request may work later

Other 4xx statuses, such as 413, raise `ClientError` itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from gkl.answers import FieldProblem


class ClientError(Exception):
    """The service refused, failed, or could not be reached. Its text says what happened and what to do."""

    def __init__(
        self,
        sentence: str,
        *,
        status: int | None = None,
        code: str | None = None,
        detail: str | None = None,
        errors: Sequence[FieldProblem] = (),
    ) -> None:
        super().__init__(sentence)
        self.status = status
        """The HTTP status; None if no service answered."""
        self.code = code
        """What went wrong, for programs, such as 'not_found'; None if the error is not from the service."""
        self.detail = sentence if detail is None else detail
        """The sentence alone, as the service wrote it."""
        self.errors = list(errors)
        """Each field at fault: where it is, what is wrong, and what would be right."""


class Unreachable(ClientError):
    """No service answers at the address."""


class NotTheService(ClientError):
    """What answers at the address is not GKL Bench, or a proxy in front of it."""


class Refused(ClientError):
    """The token is missing, unknown, or does not allow this."""


class NotFound(ClientError):
    """The service has no such job, entry or board."""


class Conflict(ClientError):
    """The current state of the job, entry or model does not allow it."""


class Invalid(ClientError):
    """A field, an option or a file of the request cannot be used; `errors` lists each field at fault."""


class TooManyRequests(ClientError):
    """A limit of this token or address is reached."""

    retry_after: float | None = None
    """Seconds until the service accepts the request; None if it does not say."""


class Unavailable(ClientError):
    """A part of the service is down, or has failed."""


def class_of(status: int) -> type[ClientError]:
    """The error class for an HTTP status."""
    known: dict[int, type[ClientError]] = {
        401: Refused,
        403: Refused,
        404: NotFound,
        409: Conflict,
        422: Invalid,
        429: TooManyRequests,
    }
    return known.get(status, Unavailable if status >= 500 else ClientError)
