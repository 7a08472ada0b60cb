"""Jobs and workers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from gkl.answers.common import JobKind, JobState, Schema
from gkl.errors import FailureCode
from gkl.outcome import EpochFinished, Progress, Resources


class FailureView(Schema):
    code: FailureCode
    message: str
    """What was found and what to do."""


class JobView(Schema):
    id: int
    kind: JobKind
    name: str
    state: JobState
    submitter: str
    """Whom the job is for: workers are shared fairly between submitters."""
    priority: int
    """Workers take jobs with higher priority first."""
    parent_id: int | None
    """The train job that this evaluation follows, or the evaluation that this shard belongs to."""
    awaits_id: int | None
    """The job that trains this distillation's teacher, if that had not ended when this job was sent."""
    child_ids: list[int]
    """The jobs that followed this one."""
    shard: int | None
    """Number of the shard, from 1; null if the job is not a shard."""
    shard_ids: list[int]
    """The jobs that share this evaluation's work."""
    attempt: int
    """How many times a worker has started it."""
    worker: str | None
    """The worker that runs it, or ran it last."""
    lost_leases: int
    """How many attempts in a row lost their worker without saving anything."""
    due_at: datetime | None
    """When a queued job may start: later after a lost worker; null while it waits for its shards or its teacher."""
    run_seconds: float
    """Time on workers in finished attempts, since the job was submitted or last retried."""
    progress: Progress | None
    resources: Resources | None
    """What the current run, or the last one, has used."""
    failure: FailureView | None
    model_id: int | None
    """The model that the job trained or measured, once it has succeeded."""
    weights_sha256: str | None
    """sha256 of the weights that the job trained or measured, once it has succeeded."""
    entry_id: int | None
    """The entry that shows the certificate which this job has checked."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    spec: dict[str, Any]
    """The spec, with every default written out."""
    warning: str | None = None
    """In the answer to a submission: why the job will probably fail, judging by earlier jobs."""
    missing: str | None = None
    """What a queued job needs and no running worker has, such as the files of its data set."""


class LoadView(Schema):
    """How busy the device of a worker is."""

    is_gpu: bool
    """True for a GPU; false for the host's processor and memory."""
    busy: float | None
    """Share of the time in which it is busy, in [0, 1]; null if the driver does not report it."""
    memory_bytes: int
    """Memory in use, also by other processes."""
    memory_total_bytes: int


class WorkerView(Schema):
    name: str
    host: str
    device: str
    """Its GPU or processor."""
    state: Literal["idle", "busy", "draining", "stuck", "lost"]
    """'draining': stopping, takes no more jobs; 'stuck': see `problem`; 'lost': no heartbeat for a lease's time."""
    problem: str | None
    """Why it takes no jobs at the moment; null if it does."""
    job_id: int | None
    """The job that it runs."""
    datasets: list[str] | None = None
    """The data sets whose files it has; null until it has reported them."""
    published: list[str] | None = None
    """The architectures whose published weights it has on its disk; null until it has reported them."""
    load: LoadView | None = None
    """How busy its device was at the last heartbeat."""
    started_at: datetime
    heard_at: datetime
    """When it last sent a heartbeat."""
    version: str


class JobMetrics(Schema):
    """The points of a training's curves."""

    job_id: int
    epochs: list[EpochFinished]
    """Each finished epoch once, in order; empty for jobs that do not train."""


class JobPage(Schema):
    jobs: list[JobView]
    next_cursor: int | None
    """Send it as `cursor` to get the next, older page; null on the last one."""
