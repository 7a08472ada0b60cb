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
    """For whom it is: workers are shared fairly between submitters."""
    priority: int
    parent_id: int | None
    """The train job that this evaluation follows; the evaluation that this is a shard of."""
    child_ids: list[int]
    """The jobs that followed this one."""
    shard: int | None
    """Which shard it is, counted from 1."""
    shard_ids: list[int]
    """The jobs that share this evaluation's work."""
    attempt: int
    """How many times a worker has taken it up."""
    worker: str | None
    lost_leases: int
    """How many of those workers were lost."""
    due_at: datetime | None
    """From when on a queued job can be taken: later after a lost worker; null while it waits for its shards."""
    run_seconds: float
    """Time on workers in the attempts that are over, since it was sent or last retried."""
    progress: Progress | None
    resources: Resources | None
    """What its run has used so far, or what its last one did."""
    failure: FailureView | None
    model_id: int | None
    """The leaderboard's model that the job made or measured, once it has succeeded."""
    weights_sha256: str | None
    """Of the weights that the job made or measured, once it has succeeded."""
    entry_id: int | None
    """The entry that stands with the certificate that it has checked."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    spec: dict[str, Any]
    """The spec, every default written out."""
    warning: str | None = None
    """In the answer to one that was sent: why it can hardly succeed, as far as earlier jobs tell."""
    missing: str | None = None
    """Of a queued job: what it needs and no worker that is running has, such as the files of its data set."""


class LoadView(Schema):
    """How busy the device of a worker is."""

    is_gpu: bool
    """Whether it is a GPU, or the processor and the memory of the host."""
    busy: float | None
    """Share of the time in which it works, 0 to 1; null where the driver does not tell."""
    memory_bytes: int
    """In use, also by others."""
    memory_total_bytes: int


class WorkerView(Schema):
    name: str
    host: str
    device: str
    """Its GPU or processor."""
    state: Literal["idle", "busy", "draining", "stuck", "lost"]
    """'draining': told to stop, takes no job any more; 'stuck': see `problem`; 'lost': not heard of for a lease."""
    problem: str | None
    """Why it takes no job at the moment, in words."""
    job_id: int | None
    """What it runs."""
    datasets: list[str] | None = None
    """The data sets whose files it has; null until it has told."""
    published: list[str] | None = None
    """The architectures whose published weights it has on its disk."""
    load: LoadView | None = None
    """At its last heartbeat."""
    started_at: datetime
    heard_at: datetime
    """Its last heartbeat."""
    version: str


class JobMetrics(Schema):
    """The points of a training's curves."""

    job_id: int
    epochs: list[EpochFinished]
    """Each finished epoch once, in order; empty for a job that trains nothing."""


class JobPage(Schema):
    jobs: list[JobView]
    next_cursor: int | None
    """Send it as `cursor` to get the next, older page; null on the last one."""
