"""Data sets and published weights that a job needs and no running worker has: shown before it is sent and while it
waits.
"""

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

_NONE = "no running worker"
NO_WORKER = "no worker is running: the job waits until one is started (gklbench worker)"


@dataclass(frozen=True)
class Holdings:
    """What each running worker has reported; None for a worker of an earlier version, which reports nothing."""

    datasets: Sequence[Sequence[Any] | None]
    published: Sequence[Sequence[Any] | None]

    def notes(self, spec: Mapping[str, Any]) -> dict[str, str]:
        """What a job would need and no worker has: a sentence for each field of its spec; under '' if no worker runs.

        Args:
            spec: as JSON; it need not be valid.
        """
        if not self.datasets:
            return {"": NO_WORKER}
        found = {}
        for needed, title in _needed_datasets(spec):
            if _is_missing(needed, self.datasets):
                found["dataset"] = f"{_NONE} has the files of {title}: a run fails until they are there; retry it then"
                break
        teacher = spec.get("teacher")
        within, named = ("teacher.", teacher) if isinstance(teacher, Mapping) else ("", spec)
        architecture = str(named.get("architecture"))
        if named.get("weights") == PUBLISHED_WEIGHTS and _is_missing(architecture, self.published):
            found[f"{within}weights"] = (
                f"{_NONE} has the published weights of {architecture} on its disk: the run tries to download them, "
                "and fails where it cannot"
            )
        return found

    def missing(self, spec: Mapping[str, Any]) -> str | None:
        """All notes in one sentence; None if there are none."""
        return "; ".join(self.notes(spec).values()) or None


def of_live_workers(session: Session, *, lease: timedelta) -> Holdings:
    """What all live workers have, except those that take no more jobs.

    Args:
        session: a transaction.
        lease: a worker whose last heartbeat is older than this is not live.
    """
    heard = WorkerRow.heard_at >= database_now(session) - lease
    living = session.scalars(select(WorkerRow).where(heard, WorkerRow.is_draining.is_(False))).all()
    return Holdings([row.datasets for row in living], [row.published for row in living])


def missing_by_job(session: Session, jobs: Iterable[Job], *, lease: timedelta) -> dict[int, str]:
    """What no worker has, by the number of the queued job that needs it."""
    waiting = [job for job in jobs if job.state is JobState.QUEUED and job.due_at is not None]
    if not waiting:
        return {}
    held = of_live_workers(session, lease=lease)
    return {job.id: missing for job in waiting if (missing := held.missing(job.spec)) is not None}


def _needed_datasets(spec: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The names that workers report, and the titles that people read."""
    dataset, evaluation = str(spec.get("dataset")), spec.get("evaluation")
    if dataset not in DATASETS:
        return
    is_corrupted = isinstance(evaluation, Mapping) and evaluation.get("protocol") == "corruptions"
    yield dataset, DATASETS[dataset].title
    if is_corrupted and dataset in CORRUPTED_DATASETS:
        yield CORRUPTED_DATASETS[dataset], CORRUPTED_DATASETS[dataset]


def _is_missing(what: str, held: Iterable[Sequence[Any] | None]) -> bool:
    """False while any worker has not reported: it may have it."""
    return all(each is not None and what not in each for each in held)
