"""The points of a training's curves: what each of its epochs measured, as models and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import JobEvent
from gkl.outcome import EpochFinished
from gkl.outcome.metrics import Metric, columns, in_order


def epochs_of(events: Iterable[JobEvent]) -> list[EpochFinished]:
    """Each epoch once, in order, from a job's events of any type.

    A resumed run repeats no finished epoch, but a lost worker's last ones may be trained again: the later one counts.
    """
    found = [EpochFinished.model_validate(e.data | {"type": "epoch"}) for e in events if e.type == "epoch"]
    by_number = {epoch.epoch: epoch for epoch in found}
    return [by_number[number] for number in sorted(by_number)]


def epochs(session: Session, job_id: int) -> list[EpochFinished]:
    """The epochs that a job has finished; none of one that trains nothing."""
    told = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type == "epoch").order_by(JobEvent.id)
    return epochs_of(session.scalars(told))


def measured(found: Iterable[EpochFinished]) -> list[Metric]:
    """The metrics that any of the epochs has, in the table's order."""
    return in_order(name for epoch in found for name in epoch.metrics)


def as_csv(found: list[EpochFinished]) -> Iterator[str]:
    """A head, then a line for each epoch; accuracies are shares, what was not measured is empty."""
    names = columns(found)
    yield _line(["epoch", *names, "seconds"])
    for epoch in found:
        yield _line([epoch.epoch, *(epoch.metrics.get(name) for name in names), epoch.seconds])


def _line(cells: list[object]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()
