"""A job's log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LogPart:
    """A part of a job's log."""

    content: bytes
    end: int
    """The byte after this part: the next call's `offset`."""

    @property
    def text(self) -> str:
        """The content as UTF-8, with U+FFFD for invalid bytes: a part may begin or end within a character."""
        return self.content.decode("utf-8", errors="replace")
