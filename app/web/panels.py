"""A training's curves as small charts one under another, with one cursor: what each shows at the same epoch.

Each chart is stretched to the available width, so it contains no text; labels and values are beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.core.formatting import percent
from app.jobs.job_metrics import measured
from gkl.outcome import EpochFinished
from gkl.outcome.metrics import METRICS, Metric, best_held_out, in_order, selecting
from gkl.spec import format_epsilon

WIDTH, HEIGHT = 1000, 100
# Enough for every pixel of a wide page to be near one.
_MOST_POINTS = 400
_NOT_MEASURED = "\N{EN DASH}"


@dataclass(frozen=True)
class Run:
    """A training whose curves are drawn."""

    job_id: int
    name: str
    epochs: Sequence[EpochFinished]


@dataclass(frozen=True)
class Line:
    """One quantity of one run."""

    run: int
    """Place of the run among those shown, which decides its color."""
    name: str
    """What it is called where a chart has several; else that of the chart."""
    style: str
    points: str
    """SVG's `points`."""
    values: list[str]
    """At each epoch of the charts, written for people; a dash where it was not measured."""
    shown: str
    """That of the cursor's epoch."""


@dataclass(frozen=True)
class Panel:
    title: str
    lines: list[Line]
    low: str
    high: str
    """The values at the lower and the upper edge."""
    grid: list[float]
    """Heights of further lines across."""
    is_tall: bool = False


@dataclass(frozen=True)
class Panels:
    width: int
    height: int
    total: int
    """The last epoch that any of the runs is to reach."""
    epochs: list[int]
    """The epochs that the cursor can show."""
    at: int
    """The epoch that the cursor shows."""
    at_x: float
    is_latest: bool
    """Whether that is where nobody has moved it from."""
    is_thinned: bool
    runs: list[Run]
    panels: list[Panel]
    best_held_out: EpochFinished | None
    """The first of the job's own with the highest accuracy on the held-out images, under PGD where that is measured."""
    selects_by: Metric | None
    """That accuracy; None where none was measured."""

    @property
    def said(self) -> str:
        """All values at the cursor in a sentence, of the first run."""
        values = [f"{line.name} {line.shown}" for panel in self.panels for line in panel.lines if line.run == 0]
        return f"epoch {self.at}: {', '.join(values)}"


def panels_of(runs: Sequence[Run], at: int | None = None) -> Panels | None:
    """
    Args:
        runs: the job's own first, then those beside it.
        at: the epoch of the cursor; by default the job's last one. The nearest that is drawn is taken.

    Returns:
        None before the job's own first epoch has ended.
    """
    own = runs[0].epochs
    if not own:
        return None
    known = sorted({epoch.epoch for run in runs for epoch in run.epochs})
    last = own[-1].epoch
    drawn = _thinned(known)
    chosen = last if at is None else at
    at = min(drawn, key=lambda epoch: (abs(epoch - chosen), -epoch))
    frame = _Frame(max(2, *(run.epochs[-1].epochs for run in runs if run.epochs)), drawn, at, runs)
    shown = in_order([*METRICS, *(metric.name for run in runs for metric in measured(run.epochs))])
    by_panel: dict[str, list[Metric]] = {}
    for metric in sorted(shown, key=lambda metric: metric.panel.place):
        if metric.is_always_a_column or any(metric.name in epoch.metrics for run in runs for epoch in run.epochs):
            by_panel.setdefault(metric.panel.title, []).append(metric)
    made = [frame.panel(metrics) for metrics in by_panel.values()]
    return Panels(
        width=WIDTH,
        height=HEIGHT,
        total=frame.total,
        epochs=drawn,
        at=at,
        at_x=frame.x(at),
        is_latest=at == last,
        is_thinned=len(drawn) < len(known),
        runs=list(runs),
        panels=made,
        best_held_out=best_held_out(own),
        selects_by=selecting(own),
    )


def _thinned(epochs: list[int]) -> list[int]:
    """At most so many, evenly, with the first and the last."""
    if len(epochs) <= _MOST_POINTS:
        return epochs
    step = (len(epochs) - 1) / (_MOST_POINTS - 1)
    return [epochs[round(place * step)] for place in range(_MOST_POINTS)]


class _Frame:
    """What all charts share."""

    def __init__(self, total: int, drawn: list[int], at: int, runs: Sequence[Run]) -> None:
        self.total, self.drawn, self.at = total, drawn, at
        self.by_epoch = [{epoch.epoch: epoch for epoch in run.epochs} for run in runs]

    def x(self, epoch: int) -> float:
        return round((epoch - 1) / (self.total - 1) * WIDTH, 1)

    def panel(self, metrics: Sequence[Metric]) -> Panel:
        """The chart of metrics that share one."""
        drawn = [
            (run, metric, self._values(epochs, metric))
            for run, epochs in enumerate(self.by_epoch)
            for metric in metrics
        ]
        shown = {metric.name for _, metric, values in drawn if any(value is not None for value in values.values())}
        # A run that lacks what another has shows a dash in its place, so that values stay under their names.
        found = [each for each in drawn if each[1].name in shown and self.by_epoch[each[0]]]
        chart = metrics[0].panel
        if chart.low is not None and chart.high is not None:
            bounds = chart.low, chart.high
        else:
            every = [value for _, _, values in found for value in values.values() if value is not None]
            bounds = _bounds(every, chart.low)
        low, high = bounds
        return Panel(
            title=chart.title,
            lines=[self._line(run, metric, values, bounds) for run, metric, values in found],
            low=write(metrics[0], low),
            high=write(metrics[0], high),
            grid=[_y(value, bounds) for value in chart.ticks if low < value < high],
            is_tall=len(metrics) > 1,
        )

    def _values(self, epochs: dict[int, EpochFinished], metric: Metric) -> dict[int, float | None]:
        """At each drawn epoch."""
        return {number: _finite(metric, epochs.get(number)) for number in self.drawn}

    def _line(self, run: int, metric: Metric, values: dict[int, float | None], bounds: tuple[float, float]) -> Line:
        points = [f"{self.x(epoch)},{_y(value, bounds)}" for epoch, value in values.items() if value is not None]
        # One point is no line: drawn from itself to itself it is a dot.
        points *= 2 if len(points) == 1 else 1
        written = {epoch: _NOT_MEASURED if value is None else write(metric, value) for epoch, value in values.items()}
        return Line(run, metric.label, metric.line, " ".join(points), list(written.values()), written[self.at])


def _finite(metric: Metric, epoch: EpochFinished | None) -> float | None:
    value = None if epoch is None else epoch.metrics.get(metric.name)
    return value if value is not None and math.isfinite(value) else None


def _y(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return round(HEIGHT - (value - low) / (high - low) * HEIGHT, 1)


def _bounds(values: Sequence[float], floor: float | None) -> tuple[float, float]:
    """Round numbers around some values.

    >>> _bounds([0.93, 1.61], None), _bounds([0.1, 0.0001], 0), _bounds([2.0], None)
    ((0.8, 1.8), (0, 0.1), (1.5, 2.5))
    """
    if not values:
        return 0.0, 1.0
    low, high = min(values) if floor is None else floor, max(values)
    if low == high:
        half = abs(low) / 4 or 0.5
        return low - half, high + half
    if floor is not None:
        return floor, high
    rough = (high - low) / 4
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return round(math.floor(low / step) * step, digits), round(math.ceil(high / step) * step, digits)


def write(metric: Metric, value: float) -> str:
    """A value at the cursor or at an edge: with more digits than a figure by itself.

    An epsilon is as people write it, where that is short: a ramp goes through values that nobody writes.

    >>> write(METRICS["epsilon"], 8 / 255), write(METRICS["epsilon"], 0.2 / 7), write(METRICS["loss"], 1.23456)
    ('8/255', '0.02857', '1.235')
    """
    if metric.unit == "share":
        return percent(value, 1)
    if metric.unit == "epsilon" and len(format_epsilon(value)) <= 7:
        return format_epsilon(value)
    return f"{value:.4g}"
