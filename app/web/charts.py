"""Numbers to coordinates; the templates draw them as SVG, so that a chart needs no script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from markupsafe import Markup, escape

from app.entries import Point
from app.job_metrics import epochs_of
from app.tables import Evaluation, JobEvent
from gkl.answers import Provenance
from gkl.outcome import EpochFinished

WIDTH, HEIGHT = 640, 240
# Room for labels, which are drawn larger on a phone.
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 16, 34


@dataclass(frozen=True)
class Tick:
    position: float
    label: str


@dataclass(frozen=True)
class Curve:
    """Accuracy over epochs: polylines, as SVG's `points`."""

    width: int
    height: int
    left: int
    right: float
    top: int
    bottom: float
    clean: str
    adversarial: str
    held_out: str
    """Accuracy under PGD on the held-out images; empty if none were held out or measured."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    last: EpochFinished
    best_held_out: EpochFinished | None
    """The first of those with the highest accuracy under PGD on the held-out images."""


@dataclass(frozen=True)
class Dot:
    """An entry in a chart, to be followed."""

    x: float
    y: float
    id: int
    label: str
    provenance: Provenance


@dataclass(frozen=True)
class Scatter:
    """Entries as dots, and a line through the best of them as SVG's `points`."""

    width: int
    height: int
    left: int
    right: float
    top: int
    bottom: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    dots: list[Dot]
    line: str

    def drawn_dots(self, root: str) -> Markup:
        """As SVG that links to the entries; in one piece, since a template takes many times as long for so many."""
        place = escape(root)
        return Markup(
            "\n".join(
                f'<a href="{place}/entries/{dot.id}" tabindex="-1"><circle class="{dot.provenance}" cx="{dot.x}" '
                f'cy="{dot.y}" r="4.5"><title>{escape(dot.label)}</title></circle></a>'
                for dot in self.dots
            )
        )


@dataclass(frozen=True)
class Bar:
    """Points that stand after a stage; `x` is where those lost in it begin, both in percent of all points."""

    label: str
    standing: int
    lost: int
    width: float
    lost_width: float
    seconds: float | None


def training_curves(epochs: list[EpochFinished]) -> Curve | None:
    """Clean and adversarial training accuracy; None before the first epoch has ended."""
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

    def points(values: list[float | None]) -> str:
        known = [(e.epoch, v) for e, v in zip(ordered, values, strict=True) if v is not None]
        return " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in known)

    measured = [e for e in ordered if e.held_out_robust_accuracy is not None]

    return Curve(
        width=WIDTH,
        height=HEIGHT,
        left=_LEFT,
        right=right,
        top=_TOP,
        bottom=bottom,
        clean=points([e.clean_accuracy for e in ordered]),
        adversarial=points([e.adversarial_accuracy for e in ordered]),
        held_out=points([e.held_out_robust_accuracy for e in ordered]),
        x_ticks=[Tick(x(number), str(number)) for number in sorted({1, (total + 1) // 2, total})],
        y_ticks=[Tick(y(share), f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        last=ordered[-1],
        best_held_out=max(measured, key=lambda e: e.held_out_robust_accuracy or 0.0) if measured else None,
    )


def curve_of(events: Iterable[JobEvent]) -> Curve | None:
    """The training curve that a job's events tell."""
    return training_curves(epochs_of(events))


def survivor_bars(evaluation: Evaluation) -> list[Bar]:
    """All points, those classified correctly, then those that stand after each attack."""
    total = evaluation.num_points
    stages: list[tuple[str, int, int, float | None]] = [
        ("clean", evaluation.clean_correct, total - evaluation.clean_correct, None)
    ]
    stages += [(a.attack, a.survivors, a.broken, a.seconds) for a in evaluation.attacks]
    return [
        Bar(label, standing, lost, 100 * standing / total, 100 * lost / total, seconds)
        for label, standing, lost, seconds in stages
    ]


def clean_against_robust(points: Sequence[Point]) -> Scatter | None:
    """Each entry by its two accuracies; the line is the Pareto front: no other entry is better in both."""
    if not points:
        return None
    frame = _Frame([100 * p.clean_accuracy for p in points], [100 * p.robust_accuracy for p in points], unit=" %")
    front, best = [], -1.0
    for point in sorted(points, key=lambda p: (-p.clean_accuracy, -p.robust_accuracy)):
        if point.robust_accuracy > best:
            best = point.robust_accuracy
            front.append((100 * point.clean_accuracy, 100 * point.robust_accuracy))
    dots = [
        frame.dot(p, 100 * p.clean_accuracy, 100 * p.robust_accuracy, f"{100 * p.clean_accuracy:.2f} % clean")
        for p in points
    ]
    return frame.scatter(dots, front)


def over_the_years(points: Sequence[Point]) -> Scatter | None:
    """Each entry by its year; the line is the best known until then. None if there is no span of years."""
    dated = [(p, p.year) for p in points if p.year is not None]
    years = sorted({year for _, year in dated})
    if len(years) < 2:
        return None
    frame = _Frame([float(year) for year in years], [100 * p.robust_accuracy for p, _ in dated], x_step=1)
    best = [max(100 * p.robust_accuracy for p, when in dated if when == year) for year in years]
    steps = _steps(list(zip(map(float, years), accumulate(best, max), strict=True)))
    return frame.scatter([frame.dot(p, year, 100 * p.robust_accuracy, str(year)) for p, year in dated], steps)


class _Frame:
    """Axes around some numbers, with round ticks."""

    def __init__(self, x: Sequence[float], y: Sequence[float], *, unit: str = "", x_step: float | None = None) -> None:
        self.width, self.height = 520, 320
        self.right, self.bottom = self.width - _RIGHT, self.height - _BOTTOM
        self.x_low, self.x_high, x_ticks = _round_range(x, x_step)
        self.y_low, self.y_high, y_ticks = _round_range(y, None)
        self.x_ticks = [Tick(self.x(value), f"{value:g}{unit}") for value in x_ticks]
        self.y_ticks = [Tick(self.y(value), f"{value:g} %") for value in y_ticks]

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - _LEFT)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * (self.bottom - _TOP)

    def dot(self, point: Point, x: float, y: float, said: str) -> Dot:
        label = f"{point.name}: {100 * point.robust_accuracy:.2f} % robust, {said}"
        return Dot(round(self.x(x), 1), round(self.y(y), 1), point.id, label, point.provenance)

    def scatter(self, dots: list[Dot], line: list[tuple[float, float]]) -> Scatter:
        # The first of several in the same place covers the others; it is drawn last, so it is kept.
        seen: dict[tuple[float, float], Dot] = {}
        for dot in dots:
            seen.setdefault((round(dot.x), round(dot.y)), dot)
        return Scatter(
            width=self.width,
            height=self.height,
            left=_LEFT,
            right=self.right,
            top=_TOP,
            bottom=self.bottom,
            x_ticks=self.x_ticks,
            y_ticks=self.y_ticks,
            dots=list(reversed(seen.values())),
            line=" ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in line),
        )


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
    """A line that stands until it rises."""
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
