"""Numbers to coordinates; the templates draw them as SVG, so that a chart needs no script."""

from __future__ import annotations

from dataclasses import dataclass

from app.tables import Evaluation
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
