"""Who asks, what they may use, and the record of what was changed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from gkl.answers.common import Schema, Scope


class LimitsView(Schema):
    """Null is without limit."""

    queued_jobs: int | None
    running_jobs: int | None
    gpu_hours_per_day: float | None
    """Hours on workers in a day of UTC."""
    upload_bytes: int | None
    """Of weights that are kept."""
    requests_per_minute: int | None


class UsedView(Schema):
    queued_jobs: int
    running_jobs: int
    gpu_hours_today: float
    """Since 00:00 UTC, with the attempts that go on."""
    upload_bytes: int


class IdentityView(Schema):
    """Whoever asks."""

    name: str
    """'anonymous' without a token."""
    scope: Scope | None
    """Null: nothing is allowed without a token."""
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
