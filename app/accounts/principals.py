"""Who sends a request, and what they may do with what is whose."""

from __future__ import annotations

from dataclasses import dataclass

from app.accounts import tokens
from app.accounts.audit import Actor
from app.core.errors import Forbidden
from app.db.tables import ANONYMOUS
from gkl.answers import Scope


@dataclass(frozen=True)
class Principal:
    """Whoever sends a request."""

    name: str
    scope: Scope | None
    limits: tokens.Limits
    token_id: int | None = None
    counted_as: str = ANONYMOUS
    """Whose requests these count among: a token's name, or an address."""
    is_open: bool = False
    """Nobody needs a token here, and everybody may speak for everybody."""
    csrf: str | None = None
    """What this browser's forms have to send."""

    @property
    def actor(self) -> Actor:
        return Actor(self.name, self.token_id)

    @property
    def is_known(self) -> bool:
        return self.token_id is not None

    def may(self, needed: Scope) -> bool:
        return tokens.allows(self.scope, needed)

    def submitter(self, asked: str | None) -> str:
        """For whom a job is.

        Raises:
            Forbidden: it would be for somebody else.
        """
        if self.is_open:
            return asked or ANONYMOUS
        if asked in (None, self.name) or self.may(Scope.ADMIN):
            return asked or self.name
        raise Forbidden(f"this token sends jobs of {self.name}, not of {asked}; leave 'submitter' out")

    def check_owns(self, submitter: str, what: str) -> None:
        """
        Raises:
            Forbidden: it is somebody else's, and this is no admin.
        """
        if not (self.is_open or submitter == self.name or self.may(Scope.ADMIN)):
            raise Forbidden(f"{what} is {submitter}'s; only they and admins can do that")
