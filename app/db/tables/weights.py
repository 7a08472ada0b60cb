"""Uploaded weights."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base


class Upload(Base):
    """Uploaded weights."""

    __tablename__ = "uploads"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    format: Mapped[str] = mapped_column(String(20))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    """When they were last sent."""
    contents: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    """Names and shapes of its tensors, see `app.jobs.weights_contents`; null if only a run can read the file."""


class UploadSender(Base):
    """A sender of weights, whose quota they count against. Weights are removed when no sender keeps them."""

    __tablename__ = "upload_senders"

    sha256: Mapped[str] = mapped_column(ForeignKey("uploads.sha256", ondelete="CASCADE"), primary_key=True)
    submitter: Mapped[str] = mapped_column(String(100), primary_key=True, index=True)


class PartialUpload(Base):
    """A file that is sent in pieces. The size of its file is the number of received bytes."""

    __tablename__ = "partial_uploads"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    submitter: Mapped[str] = mapped_column(String(100), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    """Size of the whole file."""
    sha256: Mapped[str | None] = mapped_column(String(64))
    """The complete file's SHA-256; null until it is complete. The row is kept for a while, in case the client missed
    the answer."""
    created_at: Mapped[datetime]
    touched_at: Mapped[datetime] = mapped_column(index=True)
