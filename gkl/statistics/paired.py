"""Compares two classifiers on the same points: the difference, its confidence interval, and a test for chance.

Only the points on which the two differ carry information, so the interval of the difference is narrower than two
separate intervals suggest. All functions take counts and return numbers, without torch, NumPy and SciPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z95 = 1.959963984540054
# Bisection steps on an interval of width 2: more would not change a double.
_HALVINGS = 60


@dataclass(frozen=True)
class PairedCounts:
    """On how many of N points both, one or neither of two classifiers hold.

    A classifier holds on a point if it classifies it correctly, or, for robust accuracy, correctly under every attack.

    >>> counts = PairedCounts(both=250, only_first=46, only_second=13, neither=51)
    >>> low, high = counts.interval
    >>> f"{counts.difference:.3f} ({low:.3f} to {high:.3f}), p = {counts.p_value:.1e}"
    '0.092 (0.052 to 0.135), p = 1.9e-05'
    """

    both: int
    """Points on which both hold."""
    only_first: int
    """Points on which the first holds and the second does not."""
    only_second: int
    """Points on which the second holds and the first does not."""
    neither: int
    """Points on which neither holds."""

    def __post_init__(self) -> None:
        if min(self.both, self.only_first, self.only_second, self.neither) < 0 or self.num_points == 0:
            raise ValueError(f"counts of points must be 0 or more, and together at least 1, not {self}")

    @property
    def num_points(self) -> int:
        """N, at least 1."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Share of the points on which the first holds minus the share on which the second holds, in [-1, 1]."""
        return (self.only_first - self.only_second) / self.num_points

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the difference, computed by `paired_interval`."""
        return paired_interval(self.only_first, self.only_second, self.num_points)

    @property
    def p_value(self) -> float:
        """p-value of the hypothesis that both hold equally often, computed by `mcnemar_exact`."""
        return mcnemar_exact(self.only_first, self.only_second)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test (Psychometrika 12, 1947).

    If two classifiers are equally good, each of them is right on a point on which they differ with probability 1/2.
    Let b and c be the numbers of points that only the first and only the second gets right. The p-value is
    `min(1, 2 P(X <= min(b, c)))` for X ~ Binomial(b + c, 1/2). At the usual level of 5 % the test rejects at most 5 %
    of equally good pairs, and fewer if few points differ.

    Args:
        only_first: points that only the first gets right, 0 or more.
        only_second: points that only the second gets right, 0 or more.

    >>> mcnemar_exact(0, 0), round(mcnemar_exact(1, 5), 9), mcnemar_exact(4, 4)
    (1.0, 0.21875, 1.0)
    """
    trials, fewer = only_first + only_second, min(only_first, only_second)
    if 2 * fewer >= trials - 1:
        return 1.0
    # Sums the terms relative to the largest one, so that nothing overflows or underflows.
    log_term = math.lgamma(trials + 1) - math.lgamma(fewer + 1) - math.lgamma(trials - fewer + 1)
    total = share = 1.0
    for k in range(fewer, 0, -1):
        share *= k / (trials - k + 1)
        if share < 1e-18 * total:
            break
        total += share
    return min(1.0, 2 * total * math.exp(log_term - trials * math.log(2)))


def paired_interval(only_first: int, only_second: int, num_points: int, z: float = _Z95) -> tuple[float, float]:
    """Tango's score interval for the difference of two paired proportions (Statistics in Medicine 17, 1998, p. 891).

    It contains all differences d that the score test does not reject: `|b - c - N d| <= z sqrt(N (2 q + d (1 - d)))`,
    where q is the most likely share of points that only the second gets right if d is the true difference. It is valid
    for small counts too: its coverage stays near 95 % even if few or no points differ, where Wald's interval has no
    width.

    Args:
        only_first: b, points that only the first gets right.
        only_second: c, points that only the second gets right.
        num_points: N, all points.
        z: quantile of the normal distribution; the default is for 95 %.

    Returns:
        Lower and upper end, each in [-1, 1].

    >>> [round(end, 4) for end in paired_interval(0, 0, 360)]
    [-0.0106, 0.0106]
    """
    estimate = (only_first - only_second) / num_points

    def score(d: float) -> float:
        a = 2 * num_points
        b = -only_first - only_second + (a - only_first + only_second) * d
        c = -only_second * d * (1 - d)
        # q maximizes the likelihood for the given d. Rounding may make q or the variance slightly negative.
        q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = num_points * (2 * q + d * (1 - d))
        distance = only_first - only_second - num_points * d
        return math.copysign(math.inf, distance) if variance <= 0 else distance / math.sqrt(variance)

    def end(outside: float) -> float:
        """Bisect between the estimate, where the score is 0, and an end of [-1, 1], where it is beyond z."""
        inside = estimate
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            if abs(score(middle)) <= z:
                inside = middle
            else:
                outside = middle
        return inside

    return end(-1.0), end(1.0)
