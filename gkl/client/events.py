"""Follows a job's event stream, and reconnects when the connection breaks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
from pydantic import ValidationError

from gkl.answers import JobState
from gkl.client.connection import AWAY, Connection
from gkl.outcome import AttackFinished, Event, Progress

_RECONNECT_SECONDS = 1.0
_GIVE_UP_SECONDS = 120.0


@dataclass(frozen=True)
class StreamEvent:
    """An event of a job's stream."""

    type: str
    """'state', 'epoch', 'attack' or 'progress'."""
    data: dict[str, Any]

    @property
    def of_run(self) -> Event | None:
        """The event as the run reported it, for a progress bar; None for events that a bar does not show."""
        kinds: dict[str, type[Progress | AttackFinished]] = {"progress": Progress, "attack": AttackFinished}
        try:
            return kinds[self.type].model_validate(self.data | {"type": self.type})
        except (KeyError, ValidationError):
            return None


_LAST = [state for state in JobState if state.is_final]


def follow(connection: Connection, job_id: int) -> Iterator[StreamEvent]:
    """Iterate over the job's events until it has ended; after a broken connection continue after the last event."""
    last_id: str | None = None
    has_ended = False
    lost_at: float | None = None
    while True:
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        try:
            with connection.http.sse(f"/api/v1/jobs/{job_id}/events", headers=headers, timeout=60) as stream:
                _check(connection, stream.response)
                lost_at = None
                for event in stream:
                    last_id = event.id or last_id
                    try:
                        data: Any = event.json()
                    except ValueError as error:
                        raise connection.stranger(stream.response) from error
                    yield StreamEvent(event.event, data)
                    if event.event == "state":
                        # A state that only a newer service knows does not count as final.
                        has_ended = data.get("state") in _LAST
                # The service ends the stream when nothing more will come.
                if has_ended:
                    return
        except httpx2.TransportError as error:
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > _GIVE_UP_SECONDS:
                raise connection.unreachable(error) from error
        time.sleep(_RECONNECT_SECONDS)


def _check(connection: Connection, response: httpx2.Response) -> None:
    if response.status_code in AWAY:
        raise httpx2.TransportError(f"it answered {response.status_code}")
    if response.status_code != 200:
        response.read()
        connection.check(response)
        raise connection.stranger(response)
