"""A job's attempts, read from its state changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from app.db.tables import JobEvent
from gkl.answers import JobState


@dataclass
class Attempt:
    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None = None
    ending: str = "runs"
    """How it ended, in words."""

    def seconds(self, now: datetime) -> float:
        return ((self.ended_at or now) - self.started_at).total_seconds()


def attempts(history: Iterable[JobEvent]) -> list[Attempt]:
    """The attempts in a job's `state` events, which must be in order."""
    found: list[Attempt] = []
    for event in history:
        state, data = JobState(event.data["state"]), event.data
        if state is JobState.RUNNING:
            found.append(Attempt(data["attempt"], data["worker"], event.created_at))
        elif found and found[-1].ended_at is None and state is JobState.CANCELLING:
            found[-1].ending = "is asked to stop"
        elif found and found[-1].ended_at is None:
            found[-1].ended_at = event.created_at
            found[-1].ending = data.get("code") or data.get("reason") or state.value
    return found
