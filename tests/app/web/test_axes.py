"""Ticks at round numbers."""

from __future__ import annotations

import pytest

from app.web.axes import round_range


@pytest.mark.parametrize(
    ("values", "low", "high"), [([50.0], 50.0, 50.5), ([0.0, 100.0], 0.0, 100.0), ([91.2, 93.7], 91.0, 94.0)]
)
def test_axes_hold_all_values_between_round_ends(values: list[float], low: float, high: float) -> None:
    assert round_range(values, None)[:2] == (low, high)
