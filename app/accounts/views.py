"""Audit records as the API returns them."""

from __future__ import annotations

from app.core.views import made
from app.db.tables import AuditRecord
from gkl.answers import AuditView


def audit_view(record: AuditRecord) -> AuditView:
    return made(AuditView, record)
