"""Weights that were sent."""

from __future__ import annotations

from datetime import datetime

from gkl.answers.common import Schema


class UploadView(Schema):
    sha256: str
    """What an evaluation's spec says as `weights`."""
    format: str
    """'safetensors', or 'torch' for a state dict of torch.save."""
    size_bytes: int
    created_at: datetime
    """When they were sent last."""
