"""Tokens, login sessions, and audit records."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.db.tables.base import Base, Id, Json, enum
from gkl.answers import Scope


class Token(Base):
    """A token, stored by its hash, with its scope and limits."""

    __tablename__ = "tokens"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(100), index=True)
    """The token's owner: the submitter of jobs and files sent with it."""
    hint: Mapped[str] = mapped_column(String(20))
    """The secret's first characters, to tell tokens apart."""
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    """The secret's SHA-256; the secret is random, so a slow hash would add nothing."""
    scope: Mapped[Scope] = mapped_column(enum(Scope, 20))
    max_queued_jobs: Mapped[int | None]
    """Null means no limit, here and in the following columns."""
    max_running_jobs: Mapped[int | None]
    gpu_hours_per_day: Mapped[float | None]
    """Hours on workers per day in UTC."""
    max_upload_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Limit of all bytes stored for the owner."""
    requests_per_minute: Mapped[int | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """Accurate to a minute."""


class LoginSession(Base):
    """A browser's login with a token."""

    __tablename__ = "login_sessions"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    """The SHA-256 of the cookie's value."""
    token_id: Mapped[int] = mapped_column(ForeignKey("tokens.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]

    token: Mapped[Token] = relationship()


class AuditRecord(Base):
    """A change and who made it. Written in the transaction of the change."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    created_at: Mapped[datetime] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(String(100))
    token_id: Mapped[int | None] = mapped_column(ForeignKey("tokens.id", ondelete="SET NULL"))
    action: Mapped[str] = mapped_column(String(50))
    subject: Mapped[str] = mapped_column(String(200))
    detail: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
