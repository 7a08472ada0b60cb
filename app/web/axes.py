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


def ticks_of_counts(counts: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks of a logarithmic axis that reach around these counts, each with its place (logarithm to base 10) and label:
    powers of ten; if the counts span less than one power, also twice and five times a power.

    >>> [label for _, label in ticks_of_counts([275_572, 11_173_962])]
    ['100k', '1M', '10M', '100M']
    >>> [label for _, label in ticks_of_counts([275_572])], [label for _, label in ticks_of_counts([1_000_000])]
    (['200k', '500k'], ['1M', '2M'])
    """
    low, high = max(1.0, min(counts)), max(1.0, *counts)
    factors = (1, 2, 5) if high < 10 * low else (1,)
    numbers = [factor * 10**exponent for exponent in range(math.ceil(math.log10(high)) + 2) for factor in factors]
    first = max(number for number in numbers if number <= low)
    last = min(number for number in numbers if number >= high and number > first)
    return [(math.log10(number), _short(number)) for number in numbers if first <= number <= last]


def _short(count: int) -> str:
    """A round count with its unit: '200k', '1M'."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (1000, "k")):
        if count >= unit:
            return f"{count // unit}{name}"
    return str(count)
