"""Tokens: who may use the service, with which scope and limits.

A token is 32 random bytes behind a prefix that secret scanners recognize. It is shown once; only its SHA-256 is
stored, which for a random secret is as good as a slow hash. Tokens with the same name belong to one person: they share
one set of limits, that of the newest token.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from app.accounts import audit
from app.accounts.audit import Actor
from app.core.errors import NotFound, Unauthorized, Unprocessable
from app.core.settings import Settings
from app.db.database import Database, database_now
from app.db.tables import ANONYMOUS, Job, LoginSession, Token
from gkl.answers import JobState, Scope

PREFIX = "gklb_"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,99}$"

_SECRET = re.compile(re.escape(PREFIX) + r"[A-Za-z0-9_-]{43}")
_HINT_LENGTH = len(PREFIX) + 5
_USE_NOTED_EVERY = timedelta(minutes=1)
_ORDER = tuple(Scope)


@dataclass(frozen=True)
class Limits:
    """What a token may use; None means no limit."""

    queued_jobs: int | None = 100
    running_jobs: int | None = None
    gpu_hours_per_day: float | None = None
    upload_bytes: int | None = 50 * 1024**3
    requests_per_minute: int | None = 600

    @classmethod
    def of(cls, token: Token) -> Limits:
        return cls(
            queued_jobs=token.max_queued_jobs,
            running_jobs=token.max_running_jobs,
            gpu_hours_per_day=token.gpu_hours_per_day,
            upload_bytes=token.max_upload_bytes,
            requests_per_minute=token.requests_per_minute,
        )


def allows(given: Scope | None, needed: Scope) -> bool:
    """Whether a scope includes another.

    >>> allows(Scope.ADMIN, Scope.SUBMIT), allows(Scope.READ, Scope.SUBMIT), allows(None, Scope.READ)
    (True, False, False)
    """
    return given is not None and _ORDER.index(given) >= _ORDER.index(needed)


# --- made by the owner -------------------------------------------------------------------------------------------


def create(
    session: Session, name: str, scope: Scope, *, lifetime: timedelta | None, limits: Limits, by: Actor
) -> tuple[Token, str]:
    """A new token and its secret, which cannot be read again.

    Raises:
        Unprocessable: the name is not allowed, or a valid token has it.
    """
    if not re.fullmatch(NAME_PATTERN, name) or name == ANONYMOUS:
        raise Unprocessable(
            f"a token's name is its owner's: at most 100 letters, digits, spaces and ._@+-, not {name!r}"
        )
    if valid(session, name):
        raise Unprocessable(f"there is a token of {name} already; rotate or revoke it, or choose another name")
    return _add(session, name, scope, lifetime=lifetime, limits=limits, action="token.create", by=by)


def _add(
    session: Session, name: str, scope: Scope, *, lifetime: timedelta | None, limits: Limits, action: str, by: Actor
) -> tuple[Token, str]:
    secret = PREFIX + secrets.token_urlsafe(32)
    now = database_now(session)
    token = Token(
        name=name,
        hint=secret[:_HINT_LENGTH],
        sha256=_hash(secret),
        scope=scope,
        created_at=now,
        expires_at=None if lifetime is None else now + lifetime,
    )
    _limit(token, limits)
    session.add(token)
    session.flush()
    audit.record(session, by, action, f"token {token.id}", {"name": name, "scope": scope})
    return token, secret


def _limit(token: Token, limits: Limits) -> None:
    token.max_queued_jobs, token.max_running_jobs = limits.queued_jobs, limits.running_jobs
    token.gpu_hours_per_day, token.max_upload_bytes = limits.gpu_hours_per_day, limits.upload_bytes
    token.requests_per_minute = limits.requests_per_minute


def rotate(session: Session, name: str, *, overlap: timedelta, by: Actor) -> tuple[Token, str]:
    """A new token with the scope, limits and lifetime of the old one, which expires after `overlap`.

    Raises:
        NotFound: no valid token has this name.
    """
    old = _newest_valid(session, name)
    now = database_now(session)
    lifetime = None if old.expires_at is None else old.expires_at - old.created_at
    made = _add(session, name, old.scope, lifetime=lifetime, limits=Limits.of(old), action="token.rotate", by=by)
    for token in valid(session, name):
        if token.id != made[0].id:
            token.expires_at = min(token.expires_at or now + overlap, now + overlap)
    session.flush()
    return made


def revoke(session: Session, name: str, *, by: Actor) -> int:
    """Revoke all valid tokens of a name at once, and end their login sessions. Returns how many tokens.

    Raises:
        NotFound: no valid token has this name.
    """
    _newest_valid(session, name)
    found = valid(session, name)
    for token in found:
        token.revoked_at = database_now(session)
        session.execute(delete(LoginSession).where(LoginSession.token_id == token.id))
        audit.record(session, by, "token.revoke", f"token {token.id}", {"name": name})
    session.flush()
    return len(found)


def unfinished_jobs(session: Session, name: str) -> list[int]:
    """Ids of the jobs that revoking a name's tokens leaves in place: queued, running, or being cancelled."""
    states = (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING)
    return list(session.scalars(select(Job.id).where(Job.submitter == name, Job.state.in_(states)).order_by(Job.id)))


def change(session: Session, name: str, limits: Limits, *, by: Actor) -> Token:
    """Change the limits of a name's tokens.

    Raises:
        NotFound: no valid token has this name.
    """
    token = _newest_valid(session, name)
    for each in valid(session, name):
        _limit(each, limits)
    audit.record(session, by, "token.change", f"token {token.id}", {"name": name})
    session.flush()
    return token


def all_of_them(session: Session) -> list[Token]:
    return list(session.scalars(select(Token).order_by(Token.name, Token.id)))


def valid(session: Session, name: str | None = None) -> list[Token]:
    """Tokens that are neither revoked nor expired, newest last."""
    now = database_now(session)
    query = select(Token).where(Token.revoked_at.is_(None), or_(Token.expires_at.is_(None), Token.expires_at > now))
    if name is not None:
        query = query.where(Token.name == name)
    return list(session.scalars(query.order_by(Token.id)))


def _newest_valid(session: Session, name: str) -> Token:
    found = valid(session, name)
    if not found:
        raise NotFound(f"no valid token has the name {name}; 'gklbench token list' shows them all")
    return found[-1]


def check_start(database: Database, settings: Settings) -> None:
    """Check that the service can be used once it starts.

    Raises:
        Unauthorized: it requires tokens, and there is none.
    """
    if settings.is_open:
        return
    with database.reading() as session:
        if valid(session):
            return
    where = f"GKLBENCH_HOST={settings.host}" if settings.access == "auto" else f"GKLBENCH_ACCESS={settings.access}"
    raise Unauthorized(
        f"with {where} everybody needs a token, and there is none; make the first one with: "
        f'gklbench token create --name "Your name" --scopes admin --data-dir {shlex.quote(str(settings.data_dir))}'
    )


def limits_of(session: Session, names: Collection[str]) -> dict[str, Limits]:
    """The limits by name, for each name that has or had a token. A name without one has no limits."""
    rows = session.scalars(select(Token).where(Token.name.in_(names)).order_by(Token.id))
    return {token.name: Limits.of(token) for token in rows}


# --- asked with every request ------------------------------------------------------------------------------------


def find(session: Session, secret: str) -> Token | None:
    """The valid token with this secret."""
    if not _SECRET.fullmatch(secret):
        return None
    return _if_valid(session, session.scalars(select(Token).where(Token.sha256 == _hash(secret))).first())


def _if_valid(session: Session, token: Token | None) -> Token | None:
    if token is None or token.revoked_at is not None:
        return None
    is_over = token.expires_at is not None and token.expires_at <= database_now(session)
    return None if is_over else token


def is_use_to_be_noted(session: Session, token: Token) -> bool:
    return token.last_used_at is None or database_now(session) - token.last_used_at > _USE_NOTED_EVERY


def note_use(session: Session, token_id: int) -> None:
    token = session.get(Token, token_id)
    if token is not None:
        token.last_used_at = database_now(session)


# --- browsers ----------------------------------------------------------------------------------------------------


def log_in(session: Session, token: Token, lifetime: timedelta) -> tuple[str, datetime]:
    """The value of the browser's cookie, and when it expires. The token itself is not stored in the browser."""
    value = secrets.token_urlsafe(32)
    now = database_now(session)
    until = now + lifetime if token.expires_at is None else min(token.expires_at, now + lifetime)
    session.add(LoginSession(sha256=_hash(value), token_id=token.id, created_at=now, expires_at=until))
    audit.record(session, Actor(token.name, token.id), "login", f"token {token.id}")
    session.flush()
    return value, until


def find_logged_in(session: Session, cookie: str) -> Token | None:
    """The valid token with which a browser logged in."""
    found = session.get(LoginSession, _hash(cookie))
    if found is None or found.expires_at <= database_now(session):
        return None
    return _if_valid(session, found.token)


def log_out(session: Session, cookie: str) -> None:
    session.execute(delete(LoginSession).where(LoginSession.sha256 == _hash(cookie)))


def forget_old_logins(session: Session) -> None:
    session.execute(delete(LoginSession).where(LoginSession.expires_at < database_now(session)))


def csrf_token(cookie: str) -> str:
    """The token that this browser's forms must send. It is computed from the cookie, which no script can read."""
    return hmac.new(cookie.encode(), b"gklbench form", hashlib.sha256).hexdigest()


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
