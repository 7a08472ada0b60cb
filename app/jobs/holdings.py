"""What a job needs that no worker has: said before it is sent, and while it waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.database import database_now
from app.db.tables import Job, WorkerRow
from gkl.answers import JobState
from gkl.catalog import CORRUPTED_DATASETS, DATASETS
from gkl.spec import PUBLISHED_WEIGHTS

_NONE = "no worker that is running"
NO_WORKER = "no worker is running: the job waits until one is started (gklbench worker)"


@dataclass(frozen=True)
class Holdings:
    """Of the workers that live, what each has told of itself; null from one of an earlier version."""

    datasets: Sequence[Sequence[Any] | None]
    published: Sequence[Sequence[Any] | None]

    def notes(self, spec: Mapping[str, Any]) -> dict[str, str]:
        """By the field of a job's spec what no worker has for it, in a sentence each; at '' that no worker lives.

        Args:
            spec: as JSON, which need not be right.
        """
        if not self.datasets:
            return {"": NO_WORKER}
        found = {}
        for needed, title in _needed_datasets(spec):
            if _is_missing(needed, self.datasets):
                found["dataset"] = f"{_NONE} has the files of {title}: a run fails until they are there; retry it then"
                break
        architecture = str(spec.get("architecture"))
        if spec.get("weights") == PUBLISHED_WEIGHTS and _is_missing(architecture, self.published):
            found["weights"] = (
                f"{_NONE} has the published weights of {architecture} on its disk: the run tries to download them, "
                "and fails where it cannot"
            )
        return found

    def missing(self, spec: Mapping[str, Any]) -> str | None:
        """All notes in one; None where there is none."""
        return "; ".join(self.notes(spec).values()) or None


def holdings(session: Session, *, lease: timedelta) -> Holdings:
    """Of all workers that may take a job, now or when what is in their way is mended.

    Args:
        session: to look at them with.
        lease: one that was not heard of for so long does not live.
    """
    heard = WorkerRow.heard_at >= database_now(session) - lease
    living = session.scalars(select(WorkerRow).where(heard, WorkerRow.is_draining.is_(False))).all()
    return Holdings([row.datasets for row in living], [row.published for row in living])


def missing_of(session: Session, jobs: Iterable[Job], *, lease: timedelta) -> dict[int, str]:
    """Of the jobs that wait for a worker, by their numbers, what no worker has for them."""
    waiting = [job for job in jobs if job.state is JobState.QUEUED and job.due_at is not None]
    if not waiting:
        return {}
    held = holdings(session, lease=lease)
    return {job.id: missing for job in waiting if (missing := held.missing(job.spec)) is not None}


def _needed_datasets(spec: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """As workers tell of them, and as people call them."""
    dataset, evaluation = str(spec.get("dataset")), spec.get("evaluation")
    if dataset not in DATASETS:
        return
    is_corrupted = isinstance(evaluation, Mapping) and evaluation.get("protocol") == "corruptions"
    yield dataset, DATASETS[dataset].title
    if is_corrupted and dataset in CORRUPTED_DATASETS:
        yield CORRUPTED_DATASETS[dataset], CORRUPTED_DATASETS[dataset]


def _is_missing(what: str, held: Iterable[Sequence[Any] | None]) -> bool:
    """Of a worker that has not told nobody knows."""
    return all(each is not None and what not in each for each in held)
