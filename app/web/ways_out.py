"""What the page of a failed job offers, and in which order, by the code of the failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.db.tables import Job
from gkl.answers import TRAININGS, JobKind, JobState
from gkl.errors import FailureCode

Retry = Literal["first", "first_if_saved", "second", "never"]
"""Where the button 'Retry' is. 'first_if_saved': a job that saved nothing would fail in the same way again."""


@dataclass(frozen=True)
class _Rule:
    what: str
    """What went wrong, in a sentence."""
    retry: Retry
    why: str
    """When a retry helps, and when a change does."""


RULES: dict[FailureCode, _Rule] = {
    FailureCode.INVALID_INPUT: _Rule(
        "The spec, the data or the weights cannot be used as they are.",
        "second",
        "The same spec fails again, unless the cause was a file on the server that has been fixed.",
    ),
    FailureCode.OUT_OF_MEMORY: _Rule(
        "The memory of the device was too small.",
        "second",
        "Lower batch_size. Without a change it can succeed only on a device with more memory.",
    ),
    # A resumed run is identical to an uninterrupted one: it reaches the same step with the same weights.
    FailureCode.NON_FINITE_LOSS: _Rule(
        "The training diverged: its loss became NaN or infinite.",
        "never",
        "A retry would repeat the same steps and diverge again: lower the learning rate, or change the seed.",
    ),
    FailureCode.NO_SPACE_LEFT: _Rule(
        "A disk of the service was full.", "first", "Retry once there is room; the spec is not the cause."
    ),
    FailureCode.TIMED_OUT: _Rule(
        "It exceeded the time limit for jobs.",
        "first_if_saved",
        "A retry may use the full time limit again. If nothing was saved, use a smaller spec.",
    ),
    FailureCode.NO_PROGRESS: _Rule(
        "It made no progress for too long and was stopped.",
        "first",
        "Look at the log and at the host first.",
    ),
    FailureCode.WORKER_LOST: _Rule(
        "Its workers were lost, one after the other.",
        "first",
        "Look at the hosts first. If they ran out of memory, a smaller batch_size helps.",
    ),
    FailureCode.KILLED: _Rule(
        "The run was killed from outside.",
        "first",
        "If the host ran out of memory, a smaller batch_size helps.",
    ),
    FailureCode.INTERNAL: _Rule(
        "Something went wrong in the service, not in the spec.",
        "first",
        "The log has the cause. If it fails in the same place again, please report it.",
    ),
}


@dataclass(frozen=True)
class WayOut:
    """What the page of a job without a result offers."""

    what: str | None
    """What went wrong; None if it was cancelled."""
    why: str
    change: str | None
    """Path of the form with the job's spec; None if there is no form for it."""
    retry: bool
    """Whether 'Retry' is shown."""
    change_first: bool
    """Whether the form comes first."""


def way_out(job: Job, *, has_saved: bool) -> WayOut | None:
    """What the page offers; None if the job has not ended, or has succeeded."""
    if job.state not in (JobState.FAILED, JobState.CANCELLED):
        return None
    change = _form(job)
    if job.failure_code is None:
        return WayOut(None, "", change, retry=True, change_first=False)
    rule = RULES[job.failure_code]
    place: Retry = rule.retry
    if place == "first_if_saved":
        place = "first" if has_saved else "second"
    # A job without a form can only be retried.
    return WayOut(
        rule.what,
        rule.why,
        change,
        retry=place != "never" or change is None,
        change_first=change is not None and place != "first",
    )


def _form(job: Job) -> str | None:
    """The path of the form; a shard has the spec of its whole evaluation."""
    if job.kind is JobKind.SHARD:
        return f"/submit/evaluate?job={job.parent_id}"
    return f"/submit/{job.kind}?job={job.id}" if job.kind in (*TRAININGS, JobKind.EVALUATE) else None
