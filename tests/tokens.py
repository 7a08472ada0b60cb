"""Tokens of people who send jobs."""

from __future__ import annotations

from datetime import timedelta

from app.accounts import tokens
from app.accounts.audit import COMMAND_LINE
from app.accounts.tokens import Limits
from app.db.database import Database
from gkl.answers import Scope

NO_LIMITS = Limits(None, None, None, None, None)


def token_of(database: Database, name: str, scope: Scope = Scope.SUBMIT, limits: Limits = NO_LIMITS) -> str:
    with database.writing() as session:
        return tokens.create(session, name, scope, lifetime=timedelta(days=1), limits=limits, by=COMMAND_LINE)[1]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}
