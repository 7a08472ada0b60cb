"""Paired counts against direct computations, and over all tables that can come."""

from __future__ import annotations

import math
from functools import cache

import pytest
from scipy import optimize, stats

from gkl.statistics.paired import PairedCounts, mcnemar_exact, paired_interval

TABLES = [
    (0, 0, 20),
    (1, 0, 20),
    (0, 3, 20),
    (12, 2, 50),
    (5, 5, 30),
    (46, 13, 360),
    (13, 46, 360),
    (20, 0, 20),
    (300, 250, 10_000),
]


@pytest.mark.parametrize(("b", "c", "n"), TABLES)
def test_the_p_value_is_a_binomial_sum(b: int, c: int, n: int) -> None:
    exactly = min(1.0, 2 * sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c))
    assert mcnemar_exact(b, c) == pytest.approx(exactly, rel=1e-10)
    if b + c:
        assert mcnemar_exact(b, c) == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)
    assert mcnemar_exact(c, b) == mcnemar_exact(b, c)


def test_a_p_value_of_many_points_is_still_one() -> None:
    found = mcnemar_exact(60_000, 61_000)
    assert found == pytest.approx(stats.binomtest(60_000, 121_000).pvalue, rel=1e-6)
    assert mcnemar_exact(100_000, 0) == 0.0


@cache
def most_likely_rest(b: int, c: int, n: int, d: float) -> float:
    """The share of points that only the second gets, for which such a table is most likely, if d is the difference."""

    def minus_log_likelihood(q: float) -> float:
        shares = (q + d, q, 1 - 2 * q - d)
        return -sum(
            count * math.log(max(share, 1e-300)) for count, share in zip((b, c, n - b - c), shares, strict=True)
        )

    lowest, highest = max(0.0, -d), (1 - d) / 2
    found = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-13}
    )
    return min((lowest, highest, float(found.x)), key=minus_log_likelihood)


@pytest.mark.parametrize(("b", "c", "n"), TABLES)
def test_the_ends_are_where_the_score_test_begins_to_reject(b: int, c: int, n: int) -> None:
    z = 1.959963984540054
    for end in paired_interval(b, c, n):
        if abs(end) < 1:
            q = most_likely_rest(b, c, n, end)
            score = (b - c - n * end) / math.sqrt(n * (2 * q + end * (1 - end)))
            assert abs(score) == pytest.approx(z, rel=1e-4)
    low, high = paired_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert paired_interval(c, b, n) == pytest.approx((-high, -low), abs=1e-12)


def test_of_a_table_without_differences_the_ends_are_known() -> None:
    """Then the score is sqrt(n d / (1 - d))."""
    z2 = 1.959963984540054**2
    low, high = paired_interval(0, 0, 360)
    assert (low, high) == pytest.approx((-z2 / (360 + z2), z2 / (360 + z2)), rel=1e-9)


@pytest.fixture(scope="module")
def intervals() -> dict[tuple[int, int], tuple[float, float]]:
    return {(b, c): paired_interval(b, c, 50) for b in range(51) for c in range(51 - b)}


@pytest.mark.parametrize(
    ("only_first", "only_second"), [(0.01, 0.01), (0.1, 0.1), (0.25, 0.05), (0.3, 0.3), (0.02, 0.2)]
)
def test_it_covers_the_true_difference_as_often_as_it_says(
    only_first: float, only_second: float, intervals: dict[tuple[int, int], tuple[float, float]]
) -> None:
    """Not by chance: the probabilities of all tables of 50 points in which it lies inside, added up."""
    true = only_first - only_second
    rest = 1 - only_first - only_second
    covered = sum(
        float(stats.multinomial.pmf([b, c, 50 - b - c], 50, [only_first, only_second, rest]))
        for (b, c), (low, high) in intervals.items()
        if low - 1e-12 <= true <= high + 1e-12
    )
    assert 0.93 < covered < 0.9999


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6])
def test_of_equal_pairs_at_most_5_percent_are_rejected(share: float) -> None:
    """Again over all tables of 100 points; `share` is that of the points on which the two differ."""
    rejected = sum(
        float(stats.binom.pmf(k, 100, share)) * float(stats.binom.pmf(b, k, 0.5))
        for k in range(101)
        for b in range(k + 1)
        if mcnemar_exact(b, k - b) <= 0.05
    )
    assert rejected <= 0.05
    assert share < 0.3 or rejected > 0.015


def test_drawn_pairs_agree_with_that() -> None:
    generator = stats.binom(1000, 0.1).rvs(size=2000, random_state=0)
    first = [int(stats.binom.rvs(k, 0.5, random_state=i)) for i, k in enumerate(generator)]
    rejected = sum(mcnemar_exact(b, int(k) - b) <= 0.05 for b, k in zip(first, generator, strict=True))
    covered = sum(
        low <= 0 <= high
        for low, high in (paired_interval(b, int(k) - b, 1000) for b, k in zip(first, generator, strict=True))
    )
    assert rejected / 2000 < 0.05
    assert 0.935 < covered / 2000 < 0.965


def test_counts_are_counts() -> None:
    counts = PairedCounts(both=1, only_first=3, only_second=1, neither=5)
    assert (counts.num_points, counts.difference) == (10, pytest.approx(0.2))
    assert counts.interval == paired_interval(3, 1, 10)
    assert counts.p_value == mcnemar_exact(3, 1)
    for wrong in ((0, 0, 0, 0), (1, -1, 1, 0)):
        with pytest.raises(ValueError, match="0 or more"):
            PairedCounts(*wrong)
