"""Numbers to coordinates; the templates draw them as SVG, so that a chart needs no script."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from markupsafe import Markup, escape

from app.boards.chart_points import Point
from app.core import formatting
from app.db.tables import Evaluation, JobEvent
from app.jobs.job_metrics import epochs_of, measured
from gkl.answers import Provenance
from gkl.outcome import EpochFinished
from gkl.outcome.metrics import ACCURACY, Metric, best_held_out, selecting

WIDTH, HEIGHT = 640, 240
# Room for labels, which are drawn larger on a phone.
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 16, 34


@dataclass(frozen=True)
class Tick:
    position: float
    label: str


@dataclass(frozen=True)
class CurveLine:
    """One accuracy over the epochs."""

    metric: Metric
    points: str
    """SVG's `points`."""
    last: float | None
    """In the last epoch; None where that was not measured."""


@dataclass(frozen=True)
class Curve:
    """Accuracy over epochs: polylines, as SVG's `points`."""

    width: int
    height: int
    left: int
    right: float
    top: int
    bottom: float
    lines: list[CurveLine]
    """Those that were measured."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    last: EpochFinished
    best_held_out: EpochFinished | None
    """The first of those with the highest accuracy on the held-out images."""
    selects_by: Metric | None
    """That accuracy; None where none was measured."""


@dataclass(frozen=True)
class Dot:
    """An entry in a chart, to be followed."""

    x: float
    y: float
    radius: float
    id: int
    label: str
    classes: str
    """What it was trained on, whether it was measured here, whether its size is known."""


@dataclass(frozen=True)
class Size:
    """A dot of the legend, beside the number of parameters that its size means."""

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
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    dots: list[Dot]
    line: str
    first_id: int
    """The entry that the keyboard comes to first: the best."""
    num_outside: int
    """Entries that lie below or left of what is drawn."""
    sizes: list[Size]
    """Empty where no size is known."""

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """Class and words of each colour that is there."""
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
        """As SVG that links to the entries; in one piece, since a template takes many times as long for so many."""
        opened = f'\n<a href="{escape(root)}'
        return Markup(opened + opened.join(self._pieces))


@dataclass(frozen=True)
class Bar:
    """Points that are left after a stage, and points lost in it. The widths are in percent of all points."""

    label: str
    standing: int
    lost: int
    width: float
    lost_width: float
    seconds: float | None


def training_curves(epochs: list[EpochFinished]) -> Curve | None:
    """The accuracies of a training; None before the first epoch has ended."""
    if not epochs:
        return None
    # A resumed run repeats no finished epoch, but a lost worker's last ones may be trained again: the later count.
    by_epoch = {epoch.epoch: epoch for epoch in epochs}
    ordered = [by_epoch[number] for number in sorted(by_epoch)]
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    total = max(2, ordered[-1].epochs)

    def x(epoch: int) -> float:
        return _LEFT + (epoch - 1) / (total - 1) * (right - _LEFT)

    def y(share: float) -> float:
        return bottom - share * (bottom - _TOP)

    def points(name: str) -> str:
        known = [(e.epoch, e.metrics[name]) for e in ordered if name in e.metrics]
        return " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in known)

    return Curve(
        width=WIDTH,
        height=HEIGHT,
        left=_LEFT,
        right=right,
        top=_TOP,
        bottom=bottom,
        lines=[
            CurveLine(metric, points(metric.name), ordered[-1].metrics.get(metric.name))
            for metric in measured(ordered)
            if metric.panel is ACCURACY
        ],
        x_ticks=[Tick(x(number), str(number)) for number in sorted({1, (total + 1) // 2, total})],
        y_ticks=[Tick(y(share), f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        last=ordered[-1],
        best_held_out=best_held_out(ordered),
        selects_by=selecting(ordered),
    )


def curve_of(events: Iterable[JobEvent]) -> Curve | None:
    """The training curve that a job's events tell."""
    return training_curves(epochs_of(events))


def survivor_bars(evaluation: Evaluation) -> list[Bar]:
    """The points that are classified correctly, and those that are left after each attack."""
    total = evaluation.num_points
    stages: list[tuple[str, int, int, float | None]] = [
        ("clean", evaluation.clean_correct, total - evaluation.clean_correct, None)
    ]
    stages += [(a.attack, a.survivors, a.broken, a.seconds) for a in evaluation.attacks]
    return [
        Bar(label, standing, lost, 100 * standing / total, 100 * lost / total, seconds)
        for label, standing, lost, seconds in stages
    ]


# Class of a dot -> what a legend calls it.
_KINDS = {
    "alone": "the data set alone",
    "synthetic": "generated images too",
    "extra": "extra real images",
    "both": "extra real and generated images",
    "unstated": "training data not stated",
}
_SMALLEST, _UNKNOWN = 3.0, 3.5
# Fewer entries have no middle to look at.
_FEWEST_TO_FOCUS = 8


def clean_against_robust(points: Sequence[Point], y_title: str, *, is_focused: bool = False) -> Scatter | None:
    """Each entry by its two accuracies; the line is the Pareto front: no entry above or right of it.

    Args:
        points: the entries, best first.
        y_title: what their robust accuracy is called.
        is_focused: draw the upper right alone, where most entries are. None if that is all of them.
    """
    least_clean, least_robust = _fences(points) if is_focused else (0.0, 0.0)
    drawn = [p for p in points if p.clean_accuracy >= least_clean and p.robust_accuracy >= least_robust]
    if not drawn or (is_focused and len(drawn) == len(points)):
        return None
    x, y = [100 * p.clean_accuracy for p in drawn], [100 * p.robust_accuracy for p in drawn]
    frame = _Frame(x, y, titles=("Clean accuracy", y_title), unit=" %")
    front: list[tuple[float, float]] = []
    # What is left out is worse than all of these in one of the two, and takes none of them from the front.
    for point in sorted(drawn, key=lambda p: (-p.clean_accuracy, -p.robust_accuracy)):
        if not front or 100 * point.robust_accuracy > front[-1][1]:
            front.append((100 * point.clean_accuracy, 100 * point.robust_accuracy))
    dots = [
        frame.dot(p, 100 * p.clean_accuracy, 100 * p.robust_accuracy, f"{100 * p.clean_accuracy:.2f} % clean")
        for p in drawn
    ]
    return frame.scatter(dots, frame.staircase(front), num_outside=len(points) - len(drawn))


def _fences(points: Sequence[Point]) -> tuple[float, float]:
    """Tukey's lower fences of both accuracies: 1.5 times the quartiles' distance below the lower quartile."""
    if len(points) < _FEWEST_TO_FOCUS:
        return 0.0, 0.0
    clean = statistics.quantiles([p.clean_accuracy for p in points], n=4)
    robust = statistics.quantiles([p.robust_accuracy for p in points], n=4)
    return clean[0] - 1.5 * (clean[2] - clean[0]), robust[0] - 1.5 * (robust[2] - robust[0])


def over_the_years(points: Sequence[Point], y_title: str) -> Scatter | None:
    """Each entry by its year; the line is the best known until then. None if there is no span of years."""
    dated = [(p, p.year) for p in points if p.year is not None]
    years = sorted({year for _, year in dated})
    if len(years) < 2:
        return None
    robust = [100 * p.robust_accuracy for p, _ in dated]
    frame = _Frame([float(year) for year in years], robust, titles=("Year", y_title), x_step=1)
    best = [max(100 * p.robust_accuracy for p, when in dated if when == year) for year in years]
    steps = _steps(list(zip(map(float, years), accumulate(best, max), strict=True)))
    dots = [frame.dot(p, year, 100 * p.robust_accuracy, str(year)) for p, year in dated]
    # The other chart says which size is which.
    return frame.scatter(dots, steps, has_sizes=False)


def _kind(point: Point) -> str:
    if point.extra_data is None:
        return "unstated"
    if point.extra_data:
        return "both" if point.synthetic_data else "extra"
    return "synthetic" if point.synthetic_data else "alone"


def _radius(num_parameters: int) -> float:
    """In units of the chart; the larger the network, the larger the dot, from ten thousand parameters to a billion."""
    return round(max(_SMALLEST, 2 + 0.45 * math.sqrt(num_parameters / 1e6)), 1)


class _Frame:
    """Axes around some numbers, with round ticks."""

    def __init__(
        self,
        x: Sequence[float],
        y: Sequence[float],
        *,
        titles: tuple[str, str],
        unit: str = "",
        x_step: float | None = None,
    ) -> None:
        self.width, self.height = 560, 350
        # Room for the titles, and above for the sizes.
        self.left, self.top = _LEFT + 18, 36
        self.right, self.bottom = self.width - _RIGHT, self.height - _BOTTOM - 24
        self.titles = titles
        self.x_low, self.x_high, x_ticks = _round_range(x, x_step)
        self.y_low, self.y_high, y_ticks = _round_range(y, None)
        self.x_ticks = [Tick(self.x(value), f"{value:g}{unit}") for value in x_ticks]
        self.y_ticks = [Tick(self.y(value), f"{value:g} %") for value in y_ticks]

    def x(self, value: float) -> float:
        return self.left + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * (self.bottom - self.top)

    def dot(self, point: Point, x: float, y: float, said: str) -> Dot:
        label = f"{point.name}: {100 * point.robust_accuracy:.2f} % robust, {said}"
        if point.slug != point.name:
            label = f"{point.slug}, {label}"
        classes, radius = _kind(point), _UNKNOWN
        if point.provenance is Provenance.VERIFIED:
            classes += " verified"
        if point.num_parameters is None:
            classes += " unsized"
        else:
            radius = _radius(point.num_parameters)
            label += f", {formatting.millions(point.num_parameters)} parameters"
        return Dot(round(self.x(x), 1), round(self.y(y), 1), radius, point.id, label, classes)

    def staircase(self, front: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """The border of what some entry of the front beats, from the left edge to the lower one.

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
        # The first of several in the same place covers the others.
        seen: dict[tuple[float, float], Dot] = {}
        for dot in dots:
            seen.setdefault((round(dot.x), round(dot.y)), dot)
        # A small one is drawn over a large one, and a better one over another.
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
        # As far apart as the labels need on a phone, where they are drawn larger.
        places = ((self.right - 240, 10), (self.right - 152, 50), (self.right - 64, 250))
        return [
            Size(x - _radius(number * 1_000_000) - 4, _radius(number * 1_000_000), x, f"{number}M")
            for x, number in places
        ]


@dataclass(frozen=True)
class Record:
    """How the best known robust accuracy of a board rose."""

    line: str
    """SVG's `points` in a box of 100 x 24."""
    first_year: int
    last_year: int
    first: float
    """What was best in the first year."""


def record(by_year: Mapping[int, float]) -> Record | None:
    """Of the best of each year; None without a span of years."""
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
    """The corners of a line that is horizontal up to each place and then rises vertically to it."""
    return places[:1] + [place for (_, before), (x, y) in pairwise(places) for place in ((x, before), (x, y))]


def _round_range(values: Sequence[float], step: float | None) -> tuple[float, float, list[float]]:
    """A range around some values with about five ticks at round numbers.

    >>> _round_range([41.2, 73.1], None)
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
