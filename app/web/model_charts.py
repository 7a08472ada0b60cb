"""The charts of one model: its accuracies during training, and what each attack of an evaluation broke.

The functions turn numbers into coordinates. The templates draw them as SVG, so that a chart needs no script.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from app.db.tables import Evaluation, JobEvent
from app.jobs.job_metrics import epochs_of, measured
from app.web import axes
from gkl.outcome import EpochFinished
from gkl.outcome.metrics import ACCURACY, Metric, best_held_out, selecting

_WIDTH, _HEIGHT = 640, 240


@dataclass(frozen=True)
class CurveLine:
    """One accuracy over the epochs."""

    metric: Metric
    points: str
    """SVG's `points`."""
    last: float | None
    """Its value in the last epoch; None if it was not measured then."""


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
    """One for each accuracy that was measured."""
    x_ticks: list[axes.Tick]
    y_ticks: list[axes.Tick]
    last: EpochFinished
    best_held_out: EpochFinished | None
    """The epoch with the highest accuracy on the held-out images, the first of several."""
    selects_by: Metric | None
    """The metric of that accuracy; None if none was measured."""


@dataclass(frozen=True)
class Bar:
    """A stage of an evaluation. Both widths are in percent of all points."""

    label: str
    standing: int
    """How many points are still classified correctly after the stage."""
    lost: int
    """How many points the stage took away."""
    width: float
    lost_width: float
    seconds: float | None


def training_curves(epochs: list[EpochFinished]) -> Curve | None:
    """The accuracies of a training; None before the first epoch has ended."""
    if not epochs:
        return None
    # A resumed run repeats no finished epoch, but the last epochs of a lost worker may be trained again: the later ones
    # count.
    by_epoch = {epoch.epoch: epoch for epoch in epochs}
    ordered = [by_epoch[number] for number in sorted(by_epoch)]
    right, bottom = _WIDTH - axes.RIGHT, _HEIGHT - axes.BOTTOM
    total = max(2, ordered[-1].epochs)

    def x(epoch: int) -> float:
        return axes.LEFT + (epoch - 1) / (total - 1) * (right - axes.LEFT)

    def y(share: float) -> float:
        return bottom - share * (bottom - axes.TOP)

    def points(name: str) -> str:
        known = [(e.epoch, e.metrics[name]) for e in ordered if name in e.metrics]
        return " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in known)

    return Curve(
        width=_WIDTH,
        height=_HEIGHT,
        left=axes.LEFT,
        right=right,
        top=axes.TOP,
        bottom=bottom,
        lines=[
            CurveLine(metric, points(metric.name), ordered[-1].metrics.get(metric.name))
            for metric in measured(ordered)
            if metric.panel is ACCURACY
        ],
        x_ticks=[axes.Tick(x(number), str(number)) for number in sorted({1, (total + 1) // 2, total})],
        y_ticks=[axes.Tick(y(share), f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        last=ordered[-1],
        best_held_out=best_held_out(ordered),
        selects_by=selecting(ordered),
    )


def curve_of(events: Iterable[JobEvent]) -> Curve | None:
    """The training curve from a job's events; None if no epoch has ended."""
    return training_curves(epochs_of(events))


def survivor_bars(evaluation: Evaluation) -> list[Bar]:
    """One bar for the points that are classified correctly, then one for those left after each attack."""
    total = evaluation.num_points
    stages: list[tuple[str, int, int, float | None]] = [
        ("clean", evaluation.clean_correct, total - evaluation.clean_correct, None)
    ]
    stages += [(a.attack, a.survivors, a.broken, a.seconds) for a in evaluation.attacks]
    return [
        Bar(label, standing, lost, 100 * standing / total, 100 * lost / total, seconds)
        for label, standing, lost, seconds in stages
    ]
