"""Compares two classifiers by their accuracies alone, as if they were measured on different points.

If the outcome of each point is known for both, use `gkl.statistics.paired`, which detects smaller differences. All
functions take counts and return numbers, without torch, NumPy and SciPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gkl.statistics.intervals import wilson_interval


@dataclass(frozen=True)
class UnpairedCounts:
    """On how many of its points each of two classifiers holds.

    A classifier holds on a point if it classifies it correctly, or, for robust accuracy, correctly under every attack.

    >>> counts = UnpairedCounts(first=5709, num_first=10_000, second=5613, num_second=10_000)
    >>> low, high = counts.interval
    >>> f"{counts.difference:.4f} ({low:.4f} to {high:.4f}), p = {counts.p_value:.2f}"
    '0.0096 (-0.0041 to 0.0233), p = 0.17'
    """

    first: int
    """Points on which the first holds."""
    num_first: int
    second: int
    num_second: int

    def __post_init__(self) -> None:
        if not (0 <= self.first <= self.num_first and 0 <= self.second <= self.num_second):
            raise ValueError(f"counts must be from 0 to the number of points, not {self}")
        if min(self.num_first, self.num_second) < 1:
            raise ValueError(f"each classifier needs at least one point, not {self}")

    @property
    def difference(self) -> float:
        """Share of the first's points on which it holds minus the second's share, in [-1, 1]."""
        return self.first / self.num_first - self.second / self.num_second

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the difference: Newcombe's hybrid score interval (Statistics in Medicine 17,
        1998, p. 873, method 10), computed from the Wilson intervals of both classifiers."""
        low_first, high_first = wilson_interval(self.first, self.num_first)
        low_second, high_second = wilson_interval(self.second, self.num_second)
        first, second = self.first / self.num_first, self.second / self.num_second
        below = math.hypot(first - low_first, high_second - second)
        above = math.hypot(high_first - first, second - low_second)
        return max(-1.0, self.difference - below), min(1.0, self.difference + above)

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the hypothesis that both shares are equal: the score test with the pooled share."""
        common = (self.first + self.second) / (self.num_first + self.num_second)
        variance = common * (1 - common) * (1 / self.num_first + 1 / self.num_second)
        if variance <= 0:
            # Both hold on all points, or on none.
            return 1.0
        return math.erfc(abs(self.difference) / math.sqrt(2 * variance))
