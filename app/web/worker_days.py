"""A small chart of a worker's load over the last day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.core import formatting
from app.db.tables import WorkerLoad
from app.jobs.workers import LOADS_FOR

_WIDTH, _HEIGHT = 288.0, 24.0
# A longer pause between samples leaves a gap in the line.
_GAP = timedelta(minutes=15)


@dataclass(frozen=True)
class Day:
    busy: str
    """Paths in an SVG that is 288 wide (a day) and 24 high (0 to 100 %)."""
    memory: str
    words: str


def day_of(loads: Sequence[WorkerLoad], memory_total_bytes: int, now: datetime) -> Day | None:
    """The chart; None with fewer than two samples."""
    if len(loads) < 2:
        return None
    shares = [each.busy for each in loads if each.busy is not None]
    peak = formatting.size(max(each.memory_bytes for each in loads))
    mean = f"busy {formatting.percent(sum(shares) / len(shares), 0)} on average, " if shares else ""
    return Day(
        busy=_path([(each.taken_at, each.busy) for each in loads], now),
        memory=_path([(each.taken_at, each.memory_bytes / memory_total_bytes) for each in loads], now),
        words=f"{mean}at most {peak}",
    )


def _path(points: Sequence[tuple[datetime, float | None]], now: datetime) -> str:
    parts, last = [], None
    for moment, value in points:
        if value is None:
            last = None
            continue
        x = _WIDTH * (1 - (now - moment) / LOADS_FOR)
        y = _HEIGHT * (1 - min(1.0, max(0.0, value)))
        is_joined = last is not None and moment - last <= _GAP
        parts.append(f"{'L' if is_joined else 'M'}{x:.1f} {y:.1f}")
        last = moment
    return " ".join(parts)
