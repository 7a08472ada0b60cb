"""The audit trail: who changed what, written in the transaction of the change itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.db.database import database_now
from app.db.tables import AuditRecord


@dataclass(frozen=True)
class Actor:
    """Who made a change."""

    name: str
    token_id: int | None = None


COMMAND_LINE = Actor("command line")
"""A person at the command line of the host."""


def record(session: Session, actor: Actor, action: str, subject: str, detail: dict[str, Any] | None = None) -> None:
    """Add an audit record.

    Args:
        session: the transaction that makes the change.
        actor: who made the change.
        action: such as 'entry.withdraw'.
        subject: what was changed, such as 'entry 7'.
        detail: more facts; no secrets.
    """
    session.add(
        AuditRecord(
            created_at=database_now(session),
            actor=actor.name,
            token_id=actor.token_id,
            action=action,
            subject=subject[:200],
            detail=detail or {},
        )
    )
    session.flush()


def page(session: Session, *, before_id: int | None = None, limit: int = 100) -> list[AuditRecord]:
    """Records older than `before_id`, newest first."""
    query = select(AuditRecord).order_by(AuditRecord.id.desc()).limit(limit)
    if before_id is not None:
        query = query.where(AuditRecord.id < before_id)
    return list(session.scalars(query))


def forget(session: Session, after: timedelta) -> None:
    session.execute(delete(AuditRecord).where(AuditRecord.created_at < database_now(session) - after))
