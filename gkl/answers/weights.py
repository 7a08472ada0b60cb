"""Answers about uploaded weights."""

from __future__ import annotations

from datetime import datetime

from gkl.answers.common import Schema


class UploadView(Schema):
    sha256: str
    """Identifies the file; the value for `weights` in the spec of an evaluation."""
    format: str
    """'safetensors', or 'torch' for a state dict of torch.save."""
    size_bytes: int
    created_at: datetime
    """When the file was last uploaded."""
