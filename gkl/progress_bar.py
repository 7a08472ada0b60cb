"""Shows a progress bar for a run, in a notebook or on a terminal."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gkl.outcome import AttackFinished, EpochFinished, Event, Progress
from gkl.outcome.metrics import headlines, written

# Stages whose `detail` is shown instead of their name.
_SHOWN_BY_DETAIL = ("training", "selection", "test")


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[Callable[[Event], None]]:
    """Yield a function that takes a run's events and shows its stage and latest result in a bar.

    It ignores the events if `shown` is false or tqdm is not installed.
    """
    tqdm = _tqdm() if shown else None
    if tqdm is None:
        yield lambda _: None
        return
    with tqdm(total=100, bar_format="{percentage:3.0f} %|{bar}| {desc}", leave=False) as bar:
        latest = ""

        def report(event: Event) -> None:
            nonlocal latest
            if isinstance(event, Progress):
                left = "" if event.seconds_left is None else f"at most {tqdm.format_interval(event.seconds_left)} left"
                stage = event.detail if event.stage in _SHOWN_BY_DETAIL else event.stage
                bar.set_description_str(", ".join(part for part in (stage, latest, left) if part), refresh=False)
                bar.n = 100 * event.fraction
                bar.refresh()
            elif isinstance(event, AttackFinished):
                latest = f"{event.outcome.survivors} points survive"
            elif isinstance(event, EpochFinished):
                latest = ", ".join(
                    f"{metric.label} {written(metric, value)}"
                    for metric, value in headlines(event.metrics, 3)
                    if metric.unit == "share"
                )

        yield report


def _tqdm() -> Any:
    """The class `tqdm.auto.tqdm`; None if tqdm is not installed."""
    try:
        with warnings.catch_warnings():
            # Without ipywidgets, tqdm warns in a notebook that it shows a text bar.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm  # noqa: PLC0415 - an optional dependency
    except ImportError:
        return None
    return tqdm
