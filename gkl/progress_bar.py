"""A bar that shows how far a run is: in a notebook, on a terminal, or nowhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gkl.outcome import AttackFinished, EpochFinished, Event, Progress
from gkl.outcome.metrics import headlines, written

_TOLD_BY_DETAIL = ("training", "selection")


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[Callable[[Event], None]]:
    """What a run reports to, as a bar with what is being done and what it came to so far."""
    tqdm = _tqdm() if shown else None
    if tqdm is None:
        yield lambda _: None
        return
    with tqdm(total=100, bar_format="{percentage:3.0f} %|{bar}| {desc}", leave=False) as bar:
        standing = ""

        def report(event: Event) -> None:
            nonlocal standing
            if isinstance(event, Progress):
                left = "" if event.seconds_left is None else f"at most {tqdm.format_interval(event.seconds_left)} left"
                stage = event.detail if event.stage in _TOLD_BY_DETAIL else event.stage
                bar.set_description_str(", ".join(part for part in (stage, standing, left) if part), refresh=False)
                bar.n = 100 * event.fraction
                bar.refresh()
            elif isinstance(event, AttackFinished):
                standing = f"{event.outcome.survivors} points stand"
            elif isinstance(event, EpochFinished):
                standing = ", ".join(
                    f"{metric.label} {written(metric, value)}"
                    for metric, value in headlines(event.metrics, 3)
                    if metric.unit == "share"
                )

        yield report


def _tqdm() -> Any:
    """None where it is not installed."""
    try:
        with warnings.catch_warnings():
            # A notebook without ipywidgets gets a bar of letters, and need not be told so.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm  # noqa: PLC0415 - not every installation has it
    except ImportError:
        return None
    return tqdm
