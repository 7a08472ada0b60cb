"""What the runs of a job wrote."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LogPart:
    """A job's log from a byte on."""

    content: bytes
    end: int
    """The byte to go on from, as the next call's `offset`."""

    @property
    def text(self) -> str:
        """As UTF-8, with a mark for what is none: a part may begin or end within a character."""
        return self.content.decode("utf-8", errors="replace")
