"""The charts of one board."""

from __future__ import annotations

from typing import Any

import pytest

from app.boards.chart_points import Point
from app.web.board_charts import clean_against_robust
from gkl.answers import Provenance


def _point(number: int, clean: float, robust: float, **others: Any) -> Point:
    known: dict[str, Any] = {"slug": f"M{number}", "year": 2020, "provenance": Provenance.IMPORTED}
    known |= {"extra_data": False, "synthetic_data": False, "num_parameters": 36_000_000}
    return Point(id=number, name=f"M{number}", across=clean, accuracy=robust, **known | others)


def test_the_front_is_a_staircase_from_the_left_edge_to_the_lower_one() -> None:
    points = [_point(1, 0.80, 0.60), _point(2, 0.90, 0.50), _point(3, 0.79, 0.50), _point(4, 0.85, 0.45)]
    chart = clean_against_robust(points, "Robust accuracy")
    assert chart is not None
    places = {dot.id: (dot.x, dot.y) for dot in chart.dots}
    corners = [tuple(map(float, corner.split(","))) for corner in chart.line.split()]
    (x1, y1), (x2, y2) = places[1], places[2]
    expected = [(chart.left, y1), (x1, y1), (x1, y2), (x2, y2), (x2, chart.bottom)]
    assert [pytest.approx(corner, abs=0.06) for corner in expected] == corners


def test_an_outlier_does_not_squeeze_the_rest() -> None:
    usual = [_point(n, 0.85 + n / 1000, 0.50 + n / 1000) for n in range(20)]
    outliers = [_point(100, 0.95, 0.0), _point(101, 0.30, 0.70, extra_data=True, num_parameters=None)]
    focused = clean_against_robust([*usual, *outliers], "Robust accuracy", is_focused=True)
    whole = clean_against_robust([*usual, *outliers], "Robust accuracy")
    assert focused is not None
    assert whole is not None
    assert ({dot.id for dot in focused.dots}, focused.num_outside) == ({point.id for point in usual}, 2)
    assert {dot.id for dot in whole.dots} >= {100, 101}
    assert next(dot for dot in whole.dots if dot.id == 101).classes == "extra unsized"
    # Where none is far from the others, or there are few, the whole is all there is.
    assert clean_against_robust(usual, "Robust accuracy", is_focused=True) is None
    assert clean_against_robust([*usual[:3], outliers[0]], "Robust accuracy", is_focused=True) is None
