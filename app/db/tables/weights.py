"""Weights that people send."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base


class Upload(Base):
    """Weights that somebody sent."""

    __tablename__ = "uploads"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    format: Mapped[str] = mapped_column(String(20))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    """When they were sent last."""
    contents: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    """Its tensors' names and shapes, see `app.jobs.weights_contents`; null for what only a run can read."""


class UploadSender(Base):
    """Somebody who has sent some weights, and is charged for them. They go when nobody who sent them wants them."""

    __tablename__ = "upload_senders"

    sha256: Mapped[str] = mapped_column(ForeignKey("uploads.sha256", ondelete="CASCADE"), primary_key=True)
    submitter: Mapped[str] = mapped_column(String(100), primary_key=True, index=True)


class PartialUpload(Base):
    """A file that is being sent in pieces. How much of it is here its file says."""

    __tablename__ = "partial_uploads"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    submitter: Mapped[str] = mapped_column(String(100), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    """Of the whole file."""
    sha256: Mapped[str | None] = mapped_column(String(64))
    """Of the weights that it became; null until it is whole. It stays a while for whoever missed the answer."""
    created_at: Mapped[datetime]
    touched_at: Mapped[datetime] = mapped_column(index=True)
