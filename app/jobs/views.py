"""Jobs and workers as the API returns them."""

from __future__ import annotations

from app import jobs
from app.core.views import made
from app.db.tables import Job, Model
from app.jobs.workers import WorkerStatus
from gkl.answers import FailureView, JobView, WorkerView


def job_view(
    job: Job,
    model: Model | None,
    *,
    entry_id: int | None = None,
    warning: str | None = None,
    missing: str | None = None,
) -> JobView:
    """A job as the API returns it.

    Args:
        job: the row.
        model: the model that the job trained or evaluated.
        entry_id: the entry that rests on the certificate that the job has checked.
        warning: why the job is unlikely to succeed.
        missing: what the job needs and no worker has.
    """
    failure = None
    if job.failure_code is not None:
        failure = FailureView(code=job.failure_code, message=job.failure_message or "")
    return made(
        JobView,
        job,
        child_ids=[follower.id for follower in job.followers],
        shard=None if job.shard_index is None else job.shard_index + 1,
        shard_ids=[shard.id for shard in job.shards],
        progress=jobs.progress(job),
        failure=failure,
        model_id=None if model is None else model.id,
        weights_sha256=None if model is None else model.weights_sha256,
        entry_id=entry_id,
        warning=warning,
        missing=missing,
    )


def worker_view(status: WorkerStatus) -> WorkerView:
    return made(WorkerView, status.row, state=status.state, job_id=None if status.job is None else status.job.id)
