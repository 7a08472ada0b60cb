"""Answers about jobs and workers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from gkl.answers.common import JobKind, JobState, Schema
from gkl.errors import FailureCode
from gkl.outcome import EpochFinished, Progress, Resources


class FailureView(Schema):
    code: FailureCode
    message: str
    """What went wrong and what to do."""


class JobView(Schema):
    id: int
    kind: JobKind
    name: str
    state: JobState
    submitter: str
    """Name of the account that the job belongs to. Workers are shared fairly between submitters."""
    priority: int
    """Workers take jobs with higher priority first."""
    parent_id: int | None
    """The train job that this evaluation follows, or the evaluation that this shard belongs to."""
    awaits_id: int | None
    """The job that trains this distillation's teacher, if that had not ended when this job was sent."""
    child_ids: list[int]
    """The jobs that follow this one, such as the evaluation of a training."""
    shard: int | None
    """Number of the shard, from 1; null if the job is not a shard."""
    shard_ids: list[int]
    """The jobs among which this evaluation's points are divided."""
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
    """The entry that shows the certificate that this job checked."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    spec: dict[str, Any]
    """The spec, with every default written out."""
    warning: str | None = None
    """Why the job will probably fail, judging by earlier jobs; only in the answer to its submission."""
    missing: str | None = None
    """What a queued job needs and no running worker has, such as the files of its data set."""


class LoadView(Schema):
    """How busy the device of a worker is."""

    is_gpu: bool
    """True for a GPU; false for the host's processor and memory."""
    busy: float | None
    """Share of the time during which it is busy, in [0, 1]; null if the driver does not report it."""
    memory_bytes: int
    """Memory in use, also by other processes."""
    memory_total_bytes: int


class WorkerView(Schema):
    name: str
    host: str
    device: str
    """Its GPU or processor."""
    state: Literal["idle", "busy", "draining", "stuck", "lost"]
    """'draining': stopping, takes no more jobs; 'stuck': see `problem`; 'lost': no heartbeat for a lease's duration."""
    problem: str | None
    """Why it takes no jobs at the moment; null if it takes jobs."""
    job_id: int | None
    """The job that it runs; null if it runs none."""
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
