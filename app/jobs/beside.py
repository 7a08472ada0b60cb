"""Other trainings of the same data set and architecture, whose curves can be plotted with a job's own."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import jobs
from app.core.errors import Unprocessable
from app.db.tables import Job, Model
from gkl.answers import TRAININGS

MOST = 4
"""A reader cannot distinguish more curves than this in one chart."""
_SUGGESTED = 6


def suggested(session: Session, job: Job) -> list[Job]:
    """The newest comparable trainings that produced weights; an empty list if the job is not a training."""
    if job.kind not in TRAININGS:
        return []
    trained = (
        select(Job)
        .join(Model, Model.train_job_id == Job.id)
        .where(
            Model.dataset == job.spec.get("dataset"),
            Model.architecture == job.spec.get("architecture"),
            Job.id != job.id,
        )
        .order_by(Job.id.desc())
        .limit(_SUGGESTED)
    )
    return list(session.scalars(trained))


def chosen(session: Session, job: Job, numbers: Sequence[int]) -> list[Job]:
    """The jobs with these numbers, without duplicates and without the job itself.

    Raises:
        NotFound: there is no such job.
        Unprocessable: one of them has another data set or architecture, or they are too many.
    """
    wanted = [number for number in dict.fromkeys(numbers) if number != job.id]
    if len(wanted) > MOST:
        raise Unprocessable(f"beside: {len(wanted)} trainings are too many to tell apart; choose at most {MOST}")
    found = [jobs.get(session, number) for number in wanted]
    for other in found:
        if _kind(other) != _kind(job) or job.kind not in TRAININGS:
            raise Unprocessable(
                f"beside: the curves of job {other.id} do not fit beside those of job {job.id}; choose a training of "
                "the same data set and architecture"
            )
    return found


def _kind(job: Job) -> tuple[object, ...]:
    return job.kind in TRAININGS, job.spec.get("dataset"), job.spec.get("architecture")
