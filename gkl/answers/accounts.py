"""Answers about identities, their limits and usage, and the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from gkl.answers.common import Schema, Scope


class LimitsView(Schema):
    """Limits of a token or address; null means unlimited."""

    queued_jobs: int | None
    running_jobs: int | None
    gpu_hours_per_day: float | None
    """Hours on workers per day, from 00:00 UTC."""
    upload_bytes: int | None
    """Bytes of stored weights."""
    requests_per_minute: int | None


class UsedView(Schema):
    queued_jobs: int
    running_jobs: int
    gpu_hours_today: float
    """Hours on workers since 00:00 UTC, including running attempts."""
    upload_bytes: int


class IdentityView(Schema):
    """Who sends the request."""

    name: str
    """The token's owner; 'anonymous' without a token."""
    scope: Scope | None
    """What the token allows; null if the service allows nothing without a token."""
    limits: LimitsView
    used: UsedView


class AuditView(Schema):
    id: int
    created_at: datetime
    actor: str
    """A token's name, or 'command line'."""
    action: str
    subject: str
    detail: dict[str, Any]


class AuditPage(Schema):
    records: list[AuditView]
    next_cursor: int | None
    """Send it as `cursor` to get the next, older page; null on the last one."""
