from __future__ import annotations

import pytest
from scipy.stats import binomtest

from gkl.statistics.intervals import wilson_interval


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (239, 360), (5709, 10000), (1, 1)])
def test_wilson_interval_equals_scipys(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_measured_is_nothing_known() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
