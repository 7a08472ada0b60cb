"""The sender of a request, and what they may do with other accounts' jobs and uploads."""

from __future__ import annotations

from dataclasses import dataclass

from app.accounts import tokens
from app.accounts.audit import Actor
from app.core.errors import Forbidden
from app.db.tables import ANONYMOUS
from gkl.answers import Scope


@dataclass(frozen=True)
class Principal:
    """The sender of a request."""

    name: str
    scope: Scope | None
    limits: tokens.Limits
    token_id: int | None = None
    counted_as: str = ANONYMOUS
    """The name under which the rate limit counts these requests: a token's name, or an address."""
    is_open: bool = False
    """The service is open: requests need no token and may act for any submitter."""
    csrf: str | None = None
    """The CSRF token that this browser's forms must send."""

    @property
    def actor(self) -> Actor:
        return Actor(self.name, self.token_id)

    @property
    def is_known(self) -> bool:
        return self.token_id is not None

    def may(self, needed: Scope) -> bool:
        return tokens.allows(self.scope, needed)

    def submitter(self, asked: str | None) -> str:
        """The submitter of a new job.

        Raises:
            Forbidden: the request names another submitter, and its token is not an admin's.
        """
        if self.is_open:
            return asked or ANONYMOUS
        if asked in (None, self.name) or self.may(Scope.ADMIN):
            return asked or self.name
        raise Forbidden(f"this token sends jobs as {self.name}, not as {asked}; leave 'submitter' out")

    def check_owns(self, submitter: str, what: str) -> None:
        """Check that this sender owns something, or is an admin.

        Raises:
            Forbidden: neither is the case.
        """
        if not (self.is_open or submitter == self.name or self.may(Scope.ADMIN)):
            raise Forbidden(f"{what} is {submitter}'s; only they and admins can do that")
