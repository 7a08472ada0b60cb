"""What can go wrong between a client and its service, and what to do.

    ClientError
    ├── Unreachable           nothing answers at the address
    ├── NotTheService         something else answers: a proxy in between, or another program
    ├── Refused          401, 403   the token is missing, unknown, or does not allow it
    ├── NotFound         404
    ├── Conflict         409   it does not fit the present state: a job that has ended cannot be cancelled
    ├── Invalid          422   what was sent cannot be used; `errors` has each field at fault
    ├── TooManyRequests  429   a limit is reached; `retry_after` says when to come back
    └── Unavailable      5xx   a part of the service is away or has failed; the same request may work later

An answer of any other status, such as 413 or 507, is a `ClientError` itself or the class of its hundred.
"""

from __future__ import annotations

from collections.abc import Sequence

from gkl.answers import FieldProblem


class ClientError(Exception):
    """The service refused, failed, or could not be reached. `str` of it is a sentence that says what to do."""

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
        """The HTTP status; None where no service answered."""
        self.code = code
        """What went wrong, for programs, such as 'not_found'; None where no service said so."""
        self.detail = sentence if detail is None else detail
        """The sentence alone, as the service wrote it."""
        self.errors = list(errors)
        """Each field at fault, with its place and what would be right."""


class Unreachable(ClientError):
    """No service answers at the address."""


class NotTheService(ClientError):
    """What answers at the address is not GKL Bench, or a proxy in front of it."""


class Refused(ClientError):
    """The token is missing, unknown, or does not allow this."""


class NotFound(ClientError):
    """The service has no such job, entry or board."""


class Conflict(ClientError):
    """It does not fit the present state of what it is about."""


class Invalid(ClientError):
    """What was sent cannot be used as it is."""


class TooManyRequests(ClientError):
    """A limit of this token or address is reached."""

    retry_after: float | None = None
    """After how many seconds the service lets it in again, where it says so."""


class Unavailable(ClientError):
    """A part of the service is away, or has failed."""


def class_of(status: int) -> type[ClientError]:
    """The class of errors that a status stands for."""
    known: dict[int, type[ClientError]] = {
        401: Refused,
        403: Refused,
        404: NotFound,
        409: Conflict,
        422: Invalid,
        429: TooManyRequests,
    }
    return known.get(status, Unavailable if status >= 500 else ClientError)
