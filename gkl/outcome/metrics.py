"""What a training can measure: each metric's name, title, unit, direction, and how it is drawn.

Charts, files, the terminal and the pages read this table. To add a metric, add a line here and the code that measures
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gkl.outcome.training import EpochFinished

Unit = Literal["share", "number", "epsilon"]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart of one metric, or of several with the same unit."""

    title: str
    low: float | None = None
    """The lower end of the value axis; None to choose it from the values."""
    high: float | None = None
    ticks: tuple[float, ...] = ()
    """Values at which additional horizontal lines are drawn."""
    place: int = 1
    """Charts are sorted by this, the lowest first."""


ACCURACY = Panel(title="Accuracy", low=0.0, high=1.0, ticks=(0.25, 0.5, 0.75), place=0)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that is measured in a step or an epoch."""

    name: str
    """Its key in `metrics`, and its column in a file."""
    title: str
    """The heading above a value that is shown alone."""
    label: str
    """The name within a sentence, and beside the metric's line in a chart of several."""
    description: str
    unit: Unit
    """'share' is a share of 1, shown in percent; 'epsilon' is a radius, shown as a fraction such as 8/255."""
    figure: str = ".3g"
    """Python's format specification for a value; for a share, after multiplication by 100."""
    higher_is_better: bool | None = None
    """None if neither higher nor lower is better."""
    panel: Panel
    line: str = "single"
    """The CSS class of its line."""
    is_always_a_column: bool = True
    """Whether a file of epochs has its column even if no epoch measured it."""


def _loss_part(name: str, title: str, description: str) -> Metric:
    return Metric(
        name=f"loss_{name}",
        title=title,
        label=title,
        description=description,
        unit="number",
        higher_is_better=False,
        panel=Panel(title=title),
        is_always_a_column=False,
    )


def _accuracy(name: str, title: str, label: str, description: str, *, line: str) -> Metric:
    return Metric(
        name=name,
        title=title,
        label=label,
        description=description,
        unit="share",
        figure=".1f",
        higher_is_better=True,
        panel=ACCURACY,
        line=line,
    )


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="loss",
            title="Loss",
            label="loss",
            description="What the training minimizes",
            unit="number",
            figure=".3f",
            higher_is_better=False,
            panel=Panel(title="Loss"),
        ),
        _loss_part("natural", "CE, natural", "Cross-entropy on the clean images, before its weight"),
        _loss_part("kl", "KL", "Kullback-Leibler divergence, before its weight"),
        _loss_part("dkl", "DKL", "Decoupled Kullback-Leibler divergence, before its weight"),
        _loss_part("kd", "KD", "Divergence to the teacher times the squared temperature, before its weight"),
        _loss_part("dkd", "DKD", "Decoupled divergence to the teacher, with the weights of its two parts"),
        _loss_part("kl_natural", "KL, clean", "Divergence to the teacher on the clean images, before its weight"),
        _loss_part("gkl_natural", "GKL, clean", "GKL to the teacher on the clean images, before its weight"),
        _loss_part("introspection", "KL to itself", "Weighted divergence to the student's own clean prediction"),
        _loss_part("ce", "CE, soft", "Soft-label cross-entropy, before its weight"),
        _loss_part("wmse", "wMSE", "Weighted mean squared error, before its weight"),
        _accuracy("clean_accuracy", "Clean", "clean", "Accuracy on the clean training images", line="clean"),
        _accuracy(
            "adversarial_accuracy",
            "Adversarial",
            "adversarial",
            "Accuracy on the adversarial images that the training makes",
            line="adversarial",
        ),
        _accuracy(
            "held_out_clean_accuracy",
            "Held out, clean",
            "held out, clean",
            "Held-out training images",
            line="held-out-clean",
        ),
        _accuracy(
            "held_out_robust_accuracy",
            "Held out, PGD",
            "held out, PGD",
            "Held-out training images under PGD",
            line="held-out",
        ),
        Metric(
            name="epsilon",
            title="Epsilon",
            label="epsilon",
            description="Radius of the perturbations, in units of the pixel range",
            unit="epsilon",
            panel=Panel(title="Epsilon", low=0.0, place=2),
        ),
        Metric(
            name="learning_rate",
            title="Learning rate",
            label="learning rate",
            description="Learning rate of the epoch's last step",
            unit="number",
            panel=Panel(title="Learning rate", low=0.0),
        ),
    )
}
"""All metrics by name, in the order of a file's columns."""

_SELECTING = ("held_out_robust_accuracy", "held_out_clean_accuracy")
_HEADLINES = ("loss", "clean_accuracy", "adversarial_accuracy", *_SELECTING, "epsilon", "learning_rate")


def metric_of(name: str) -> Metric:
    """The metric with this name. An unknown one, from a later version, is a plain number with a chart of its own."""
    known = METRICS.get(name)
    if known is not None:
        return known
    return Metric(
        name=name,
        title=name,
        label=name,
        description="",
        unit="number",
        panel=Panel(title=name),
        is_always_a_column=False,
    )


def in_order(names: Iterable[str]) -> list[Metric]:
    """Each metric once, in the order of the table; unknown ones come last."""
    places = {name: place for place, name in enumerate(METRICS)}
    return [metric_of(name) for name in sorted(dict.fromkeys(names), key=lambda name: places.get(name, len(places)))]


def columns(epochs: Iterable[EpochFinished]) -> list[str]:
    """The column names of a table of epochs: the usual metrics, and those that any epoch measured."""
    always = [metric.name for metric in METRICS.values() if metric.is_always_a_column]
    return [metric.name for metric in in_order([*always, *(name for epoch in epochs for name in epoch.metrics)])]


def headlines(measured: Mapping[str, float], most: int) -> list[tuple[Metric, float]]:
    """The most important of the measured metrics with their values, at most `most`."""
    found = [(METRICS[name], measured[name]) for name in _HEADLINES if name in measured]
    return found[:most]


def written(metric: Metric, value: float) -> str:
    """A value as text.

    >>> written(METRICS["clean_accuracy"], 0.875), written(METRICS["loss"], 11.25), written(METRICS["epsilon"], 0.1)
    ('87.5 %', '11.250', '0.1')
    """
    if metric.unit == "share":
        return f"{100 * value:{metric.figure}} %"
    return f"{value:{metric.figure}}"


def selecting(epochs: Iterable[EpochFinished]) -> Metric | None:
    """The held-out metric by which an epoch is selected; None where none was measured."""
    measured = {name for epoch in epochs for name in epoch.metrics}
    return next((METRICS[name] for name in _SELECTING if name in measured), None)


def best_held_out(epochs: Sequence[EpochFinished]) -> EpochFinished | None:
    """The first epoch with the highest value of the metric of `selecting`; None where none was measured."""
    by = selecting(epochs)
    if by is None:
        return None
    measured = [epoch for epoch in epochs if by.name in epoch.metrics]
    return max(measured, key=lambda epoch: epoch.metrics[by.name])
