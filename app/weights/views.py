"""Uploaded weights as the API returns them."""

from __future__ import annotations

from app.core.views import made
from app.db.tables import Upload
from gkl.answers import UploadView


def upload_view(upload: Upload) -> UploadView:
    return made(UploadView, upload)
