"""The margins of charts, and ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# The labels in the margins are drawn larger on a phone.
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 16, 34


@dataclass(frozen=True)
class Tick:
    position: float
    label: str


def round_range(values: Sequence[float], step: float | None) -> tuple[float, float, list[float]]:
    """A range around some values with about five ticks at round numbers.

    >>> round_range([41.2, 73.1], None)
    (40.0, 80.0, [40.0, 50.0, 60.0, 70.0, 80.0])
    """
    low, high = min(values), max(values)
    if step is None:
        rough = max(high - low, 1.0) / 4
        scale = 10 ** math.floor(math.log10(rough))
        step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:
        last += 1
    every = max(1, (last - first) // 6)
    ticks = [float(number * step) for number in range(first, last + 1, every)]
    return float(first * step), float(last * step), ticks
