"""Unpaired counts against statsmodels' and SciPy's formulas as they are printed, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gkl.statistics.unpaired import UnpairedCounts


def test_the_p_value_is_that_of_the_chi_squared_test() -> None:
    for first, num_first, second, num_second in ((56, 70, 48, 80), (5709, 10_000, 5613, 10_000), (3, 360, 11, 360)):
        table = [[first, num_first - first], [second, num_second - second]]
        expected = stats.chi2_contingency(table, correction=False).pvalue
        assert UnpairedCounts(first, num_first, second, num_second).p_value == pytest.approx(expected, rel=1e-9)


# Newcombe 1998, table II, method 10.
@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((10, 10, 0, 20), (0.6791, 1.0000)),
        ((10, 10, 0, 10), (0.6075, 1.0000)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((0, 10, 0, 10), (-0.2775, 0.2775)),
    ],
)
def test_the_interval_is_the_published_one(counts: tuple[int, int, int, int], expected: tuple[float, float]) -> None:
    assert UnpairedCounts(*counts).interval == pytest.approx(expected, abs=6e-5)


def test_equal_ones_are_rarely_told_apart() -> None:
    random = np.random.default_rng(0)
    draws = random.binomial(1000, 0.55, size=(4000, 2))
    rejected = np.mean([UnpairedCounts(int(a), 1000, int(b), 1000).p_value < 0.05 for a, b in draws])
    # Within three standard errors.
    assert abs(rejected - 0.05) < 3 * (0.05 * 0.95 / 4000) ** 0.5


def test_all_or_nothing_is_no_difference() -> None:
    assert UnpairedCounts(0, 10, 0, 20).p_value == UnpairedCounts(10, 10, 20, 20).p_value == 1.0
    with pytest.raises(ValueError, match="from 0 to"):
        UnpairedCounts(11, 10, 0, 10)
    with pytest.raises(ValueError, match="at least one point"):
        UnpairedCounts(0, 0, 0, 10)
