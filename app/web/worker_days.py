"""How busy a worker was over the last day, as two lines of a small chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.core import formatting
from app.db.tables import WorkerLoad
from app.jobs.workers import LOADS_FOR

_WIDTH, _HEIGHT = 288.0, 24.0
# Two heartbeats' worth of samples: over a longer pause there is no line.
_GAP = timedelta(minutes=15)


@dataclass(frozen=True)
class Day:
    busy: str
    """Paths of an SVG, 288 wide and 24 high: the whole day, and from 0 to all."""
    memory: str
    words: str


def day_of(loads: Sequence[WorkerLoad], memory_total_bytes: int, now: datetime) -> Day | None:
    """None before there are two samples."""
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
