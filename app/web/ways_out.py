"""What a failed job's page offers, and in which order: the table of decisions, by the failure's code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.db.tables import Job
from gkl.answers import JobKind, JobState
from gkl.errors import FailureCode

Retry = Literal["first", "first_if_saved", "second", "never"]
"""Where the button 'Retry' stands. 'first_if_saved': a job that saved nothing would take the same way again."""


@dataclass(frozen=True)
class _Rule:
    what: str
    """What went wrong, in a sentence."""
    retry: Retry
    why: str
    """When each of the two helps."""


RULES: dict[FailureCode, _Rule] = {
    FailureCode.INVALID_INPUT: _Rule(
        "The spec, the data or the weights cannot be used as they are.",
        "second",
        "The same spec fails again, unless a file on the server was at fault and has been put right.",
    ),
    FailureCode.OUT_OF_MEMORY: _Rule(
        "The memory of the device was too small.",
        "second",
        "Lower batch_size. As it is it can succeed only on a device with more memory.",
    ),
    # A resumed run equals one that was never interrupted: it comes to the same step with the same weights.
    FailureCode.NON_FINITE_LOSS: _Rule(
        "The training diverged: its loss became NaN or infinite.",
        "never",
        "A retry would repeat the same steps and diverge again: lower the learning rate, or change the seed.",
    ),
    FailureCode.NO_SPACE_LEFT: _Rule(
        "A disk of the service was full.", "first", "Once there is room, it goes on; nothing in the spec is at fault."
    ),
    FailureCode.TIMED_OUT: _Rule(
        "It took longer than a job may here.",
        "first_if_saved",
        "A retry has the whole time again. Without anything saved it needs a smaller spec.",
    ),
    FailureCode.NO_PROGRESS: _Rule(
        "It gave no sign of life for too long and was stopped.",
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
    """What the page of a job that ended without a result offers."""

    what: str | None
    """What went wrong; None where somebody cancelled it."""
    why: str
    change: str | None
    """Address of the form with the job's spec, within the service; None where there is no form for it."""
    retry: bool
    """Whether 'Retry' is shown."""
    change_first: bool
    """Whether the form stands first."""


def way_out(job: Job, *, has_saved: bool) -> WayOut | None:
    """None while a job has not ended, or has ended well."""
    if job.state not in (JobState.FAILED, JobState.CANCELLED):
        return None
    change = _form(job)
    if job.failure_code is None:
        return WayOut(None, "", change, retry=True, change_first=False)
    rule = RULES[job.failure_code]
    place: Retry = rule.retry
    if place == "first_if_saved":
        place = "first" if has_saved else "second"
    # What has no form can only be retried.
    return WayOut(
        rule.what,
        rule.why,
        change,
        retry=place != "never" or change is None,
        change_first=change is not None and place != "first",
    )


def _form(job: Job) -> str | None:
    """A shard's spec is that of its whole evaluation."""
    if job.kind is JobKind.SHARD:
        return f"/submit/evaluate?job={job.parent_id}"
    return f"/submit/{job.kind}?job={job.id}" if job.kind in (JobKind.TRAIN, JobKind.EVALUATE) else None
