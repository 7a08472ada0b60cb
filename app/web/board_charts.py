"""The charts of one board: its entries as dots, and its best robust accuracy over the years.

The functions turn numbers into coordinates. The templates draw them as SVG, so that a chart needs no script.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from markupsafe import Markup, escape

from app.boards.chart_points import Point
from app.core import formatting
from app.web import axes
from gkl.answers import Provenance

# Class of a dot -> what a legend calls it.
_KINDS = {
    "alone": "the data set alone",
    "synthetic": "generated images too",
    "extra": "extra real images",
    "both": "extra real and generated images",
    "unstated": "training data not stated",
}
# Radius of the smallest dots, of those whose number of parameters is not known, and of all in a chart without sizes.
_SMALLEST, _UNKNOWN, _UNSCALED = 3.0, 3.5, 4.5
# With fewer entries, quartiles do not say where most of them are.
_FEWEST_TO_FOCUS = 8


@dataclass(frozen=True)
class Dot:
    """An entry in a chart, with a link to its page."""

    x: float
    y: float
    radius: float
    id: int
    label: str
    classes: str
    """CSS classes: what it was trained on, whether it was measured here, whether its number of parameters is known."""


@dataclass(frozen=True)
class Size:
    """In the legend: a dot of the size that a network with this number of parameters has."""

    x: float
    radius: float
    label_x: float
    label: str


@dataclass(frozen=True)
class Scatter:
    """Entries as dots, and a line through the best of them as SVG's `points`."""

    width: int
    height: int
    left: int
    right: float
    top: int
    bottom: float
    x_title: str
    y_title: str
    x_ticks: list[axes.Tick]
    y_ticks: list[axes.Tick]
    dots: list[Dot]
    line: str
    first_id: int
    """The best entry, which gets the keyboard's focus first."""
    num_outside: int
    """How many entries lie below or left of the drawn range."""
    sizes: list[Size]
    """Empty if no drawn entry has a known number of parameters, or if the chart shows no sizes."""

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """CSS class and description of each colour in the chart."""
        there = {dot.classes.partition(" ")[0] for dot in self.dots}
        return [(kind, words) for kind, words in _KINDS.items() if kind in there]

    @property
    def has_verified(self) -> bool:
        return any(" verified" in dot.classes for dot in self.dots)

    @property
    def has_unsized(self) -> bool:
        return any(" unsized" in dot.classes for dot in self.dots)

    @cached_property
    def _pieces(self) -> list[str]:
        return [
            f'/entries/{dot.id}" tabindex="{"0" if dot.id == self.first_id else "-1"}"><title>{escape(dot.label)}'
            f'</title><circle class="{dot.classes}" cx="{dot.x}" cy="{dot.y}" r="{dot.radius}"/></a>'
            for dot in self.dots
        ]

    def drawn_dots(self, root: str) -> Markup:
        """The dots as SVG that links to the entries. A template would take many times as long for so many."""
        opened = f'\n<a href="{escape(root)}'
        return Markup(opened + opened.join(self._pieces))


def clean_against_robust(points: Sequence[Point], y_title: str, *, is_focused: bool = False) -> Scatter | None:
    """Draw each entry at its two accuracies. The line is the Pareto front: no entry lies above or right of it.

    Args:
        points: the entries, best first; `across` is their clean accuracy.
        y_title: what their robust accuracy is called.
        is_focused: draw only the upper right, where most entries are.

    Returns:
        None if there are no entries, or if `is_focused` would leave none out.
    """
    least_clean, least_robust = _fences(points) if is_focused else (0.0, 0.0)
    drawn = [p for p in points if p.across >= least_clean and p.accuracy >= least_robust]
    if not drawn or (is_focused and len(drawn) == len(points)):
        return None
    x, y = [100 * p.across for p in drawn], [100 * p.accuracy for p in drawn]
    frame = _Frame(x, y, titles=("Clean accuracy", y_title), unit=" %")
    front: list[tuple[float, float]] = []
    # An entry that is left out is worse than all drawn ones in one accuracy, so it dominates none of them.
    for point in sorted(drawn, key=lambda p: (-p.across, -p.accuracy)):
        if not front or 100 * point.accuracy > front[-1][1]:
            front.append((100 * point.across, 100 * point.accuracy))
    dots = [frame.dot(p, 100 * p.across, f"robust, {100 * p.across:.2f} % clean") for p in drawn]
    return frame.scatter(dots, frame.staircase(front), num_outside=len(points) - len(drawn))


def accuracy_against_parameters(points: Sequence[Point], y_title: str, *, is_focused: bool = False) -> Scatter | None:
    """Draw each entry at its number of parameters, on a logarithmic axis, and its accuracy. The line is the Pareto
    front: no entry lies above or left of it.

    Args:
        points: the entries, best first; `across` is their number of parameters.
        y_title: what their accuracy is called.
        is_focused: leave out entries whose accuracy is far lower than that of most.

    Returns:
        None if there are no entries, or if `is_focused` would leave none out.
    """
    least = _fence([p.accuracy for p in points]) if is_focused else 0.0
    drawn = [p for p in points if p.accuracy >= least]
    if not drawn or (is_focused and len(drawn) == len(points)):
        return None
    places = {p.id: math.log10(max(p.across, 1.0)) for p in drawn}
    heights = [100 * p.accuracy for p in drawn]
    ticks = axes.ticks_of_counts([p.across for p in drawn])
    frame = _Frame(list(places.values()), heights, titles=("Parameters", y_title), x_known=ticks)
    front: list[tuple[float, float]] = []
    for point in sorted(drawn, key=lambda p: (p.across, -p.accuracy)):
        if not front or 100 * point.accuracy > front[-1][1]:
            front.append((places[point.id], 100 * point.accuracy))
    dots = [frame.dot(p, places[p.id], "clean", is_sized=False) for p in drawn]
    line = _steps([(front[0][0], frame.y_low), *front, (frame.x_high, front[-1][1])])
    return frame.scatter(dots, line, num_outside=len(points) - len(drawn), has_sizes=False)


def _fences(points: Sequence[Point]) -> tuple[float, float]:
    """The lower fences of both accuracies."""
    return _fence([p.across for p in points]), _fence([p.accuracy for p in points])


def _fence(accuracies: Sequence[float]) -> float:
    """Tukey's lower fence: 1.5 times the quartiles' distance below the lower quartile."""
    if len(accuracies) < _FEWEST_TO_FOCUS:
        return 0.0
    quartiles = statistics.quantiles(accuracies, n=4)
    return quartiles[0] - 1.5 * (quartiles[2] - quartiles[0])


def over_the_years(points: Sequence[Point], y_title: str, *, figure: str = "robust") -> Scatter | None:
    """Draw each entry at its year. The line is the best accuracy up to each year. None with fewer than two years.

    Args:
        points: the entries, best first.
        y_title: what their accuracy is called.
        figure: the word for it after a number: 'robust' or 'clean'.
    """
    dated = [(p, p.year) for p in points if p.year is not None]
    years = sorted({year for _, year in dated})
    if len(years) < 2:
        return None
    heights = [100 * p.accuracy for p, _ in dated]
    frame = _Frame([float(year) for year in years], heights, titles=("Year", y_title), x_step=1)
    best = [max(100 * p.accuracy for p, when in dated if when == year) for year in years]
    steps = _steps(list(zip(map(float, years), accumulate(best, max), strict=True)))
    dots = [frame.dot(p, year, f"{figure}, {year}") for p, year in dated]
    # The chart of the two accuracies has the legend of sizes.
    return frame.scatter(dots, steps, has_sizes=False)


def _kind(point: Point) -> str:
    if point.extra_data is None:
        return "unstated"
    if point.extra_data:
        return "both" if point.synthetic_data else "extra"
    return "synthetic" if point.synthetic_data else "alone"


def _radius(num_parameters: int) -> float:
    """The radius of a network's dot, in units of the chart. Its area grows about as the number of parameters."""
    return round(max(_SMALLEST, 2 + 0.45 * math.sqrt(num_parameters / 1e6)), 1)


class _Frame:
    """Axes around some values, with ticks at round numbers."""

    def __init__(
        self,
        x: Sequence[float],
        y: Sequence[float],
        *,
        titles: tuple[str, str],
        unit: str = "",
        x_step: float | None = None,
        x_known: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        """
        Args:
            x: values across.
            y: accuracies in percent.
            titles: of the two axes.
            unit: after each number across.
            x_step: distance of two ticks across; None chooses it.
            x_known: the ticks across with their labels, from the left edge to the right one; None makes them.
        """
        self.width, self.height = 560, 350
        # Room for the titles, and above for the sizes.
        self.left, self.top = axes.LEFT + 18, 36
        self.right, self.bottom = self.width - axes.RIGHT, self.height - axes.BOTTOM - 24
        self.titles = titles
        if x_known is None:
            self.x_low, self.x_high, x_ticks = axes.round_range(x, x_step)
            x_known = [(value, f"{value:g}{unit}") for value in x_ticks]
        else:
            self.x_low, self.x_high = x_known[0][0], x_known[-1][0]
        self.y_low, self.y_high, y_ticks = axes.round_range(y, None)
        self.x_ticks = [axes.Tick(self.x(value), label) for value, label in x_known]
        self.y_ticks = [axes.Tick(self.y(value), f"{value:g} %") for value in y_ticks]

    def x(self, value: float) -> float:
        return self.left + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * (self.bottom - self.top)

    def dot(self, point: Point, x: float, said: str, *, is_sized: bool = True) -> Dot:
        """An entry at `x` and its accuracy.

        Args:
            point: the entry.
            x: its place across.
            said: what follows the accuracy in the dot's label.
            is_sized: whether the dot's size shows the number of parameters.
        """
        label = f"{point.name}: {100 * point.accuracy:.2f} % {said}"
        if point.slug != point.name:
            label = f"{point.slug}, {label}"
        classes, radius = _kind(point), _UNKNOWN
        if point.provenance is Provenance.VERIFIED:
            classes += " verified"
        if point.num_parameters is None:
            classes += " unsized"
        else:
            radius = _radius(point.num_parameters) if is_sized else _UNSCALED
            label += f", {formatting.millions(point.num_parameters)} parameters"
        return Dot(round(self.x(x), 1), round(self.y(100 * point.accuracy), 1), radius, point.id, label, classes)

    def staircase(self, front: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """The border of the area that the front's entries dominate, from the left edge to the lower one.

        Args:
            front: accuracies, from the rightmost to the highest.
        """
        border = [(front[0][0], self.y_low)]
        for (x, y), (next_x, _) in pairwise([*front, (self.x_low, 0.0)]):
            border += [(x, y), (next_x, y)]
        return border[::-1]

    def scatter(
        self, dots: list[Dot], line: list[tuple[float, float]], *, num_outside: int = 0, has_sizes: bool = True
    ) -> Scatter:
        # Of several dots in the same place only the first is drawn.
        seen: dict[tuple[float, float], Dot] = {}
        for dot in dots:
            seen.setdefault((round(dot.x), round(dot.y)), dot)
        # Small dots are drawn over large ones, and better entries over worse ones of the same size.
        drawn = list(seen.values())
        drawn.reverse()
        drawn.sort(key=lambda dot: -dot.radius)
        return Scatter(
            width=self.width,
            height=self.height,
            left=self.left,
            right=self.right,
            top=self.top,
            bottom=self.bottom,
            x_title=self.titles[0],
            y_title=self.titles[1],
            x_ticks=self.x_ticks,
            y_ticks=self.y_ticks,
            dots=drawn,
            line=" ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in line),
            first_id=dots[0].id,
            num_outside=num_outside,
            sizes=self._sizes() if has_sizes and any(" unsized" not in dot.classes for dot in drawn) else [],
        )

    def _sizes(self) -> list[Size]:
        # Far enough apart for the labels on a phone, where they are drawn larger.
        places = ((self.right - 240, 10), (self.right - 152, 50), (self.right - 64, 250))
        return [
            Size(x - _radius(number * 1_000_000) - 4, _radius(number * 1_000_000), x, f"{number}M")
            for x, number in places
        ]


@dataclass(frozen=True)
class Record:
    """How the best known accuracy of a board rose."""

    line: str
    """SVG's `points` in a box of 100 x 24."""
    first_year: int
    last_year: int
    first: float
    """The best accuracy of the first year."""


def record(by_year: Mapping[int, float]) -> Record | None:
    """Make it from the best accuracy of each year. None with fewer than two years."""
    if len(by_year) < 2:
        return None
    years = sorted(by_year)
    heights = list(accumulate((by_year[year] for year in years), max))
    low, rise = heights[0], (heights[-1] - heights[0]) or 1.0
    places = [
        (100 * (year - years[0]) / (years[-1] - years[0]), 22 - 20 * (height - low) / rise)
        for year, height in zip(years, heights, strict=True)
    ]
    return Record(" ".join(f"{x:.1f},{y:.1f}" for x, y in _steps(places)), years[0], years[-1], low)


def _steps(places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Turn a line into steps: level until the next place, then up to it."""
    return places[:1] + [place for (_, before), (x, y) in pairwise(places) for place in ((x, before), (x, y))]
