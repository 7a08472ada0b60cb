"""The errors of the engine.

    GklError
    ├── InvalidInput          the spec, the data or the weights cannot be used as given
    ├── NonFiniteLoss         the training diverged
    ├── NoSpaceLeft           the disk is full
    ├── OutOfMemory           the device's memory is full
    ├── DecodingEnded         a process that decodes images was ended from outside
    └── InvalidVerdict        an attack's result did not survive its own re-check
    Stopped                   not an error: the run was asked to stop and has saved a checkpoint

Every message is one or two sentences: what was found, and what to do.
"""

from __future__ import annotations

from enum import StrEnum


class FailureCode(StrEnum):
    """Why a job failed, for pages, clients and metrics, which thus need not parse the message."""

    INVALID_INPUT = "invalid_input"
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE_LOSS = "non_finite_loss"
    NO_SPACE_LEFT = "no_space_left"
    TIMED_OUT = "timed_out"
    NO_PROGRESS = "no_progress"
    WORKER_LOST = "worker_lost"
    KILLED = "killed"
    INTERNAL = "internal"


class GklError(Exception):
    """Base of the engine's errors; `code` becomes the code of a failed job."""

    code: FailureCode = FailureCode.INTERNAL


class InvalidInput(GklError):
    """The spec, the data or the weights cannot be used as given."""

    code = FailureCode.INVALID_INPUT


class NonFiniteLoss(GklError):
    """The loss became NaN or infinite; the last checkpoint remains."""

    code = FailureCode.NON_FINITE_LOSS


class NoSpaceLeft(GklError):
    """The disk is full; everything saved before remains."""

    code = FailureCode.NO_SPACE_LEFT


class OutOfMemory(GklError):
    """The device has too little memory."""

    code = FailureCode.OUT_OF_MEMORY


class DecodingEnded(GklError):
    """A process that decodes images was ended from outside, as the kernel does when memory is short."""

    code = FailureCode.KILLED


class InvalidVerdict(GklError):
    """An attack's result did not survive its re-check; it is not recorded."""

    code = FailureCode.INTERNAL


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C) and left a checkpoint to resume from."""
