"""Enumerations and models that many answers use, and the body of an error response."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class JobState(StrEnum):
    """The state of a job. The last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


HELD = (JobState.RUNNING, JobState.CANCELLING)
"""States of jobs that a worker has claimed and not yet ended."""


class JobKind(StrEnum):
    """What a job does."""

    TRAIN = "train"
    DISTILL = "distill"
    """A training of a student that learns from a teacher."""
    EVALUATE = "evaluate"
    SHARD = "shard"
    """A part of an evaluation's points, as a job of its own."""
    EXTERNAL = "external"
    """A check of submitted adversarial examples."""
    REPORT = "report"
    """A check of a certificate whose network this service does not have."""
    TRANSFER = "transfer"
    """Adversarial examples of one entry, tried on the network of another."""


TRAININGS = (JobKind.TRAIN, JobKind.DISTILL)
"""Kinds of jobs that leave a network."""


class Provenance(StrEnum):
    """Who measured an entry's robust accuracy."""

    VERIFIED = "verified"
    """A worker of this service."""
    IMPORTED = "imported"
    """RobustBench; imported from a file of its `model_info`."""
    REPORTED = "reported"
    """The model's authors only: a figure that RobustBench quotes, or a certificate whose network was not run here."""


class Scope(StrEnum):
    """What a token allows. Each scope includes the ones before it."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


class Schema(BaseModel):
    """Base of the answers; the docstrings of their fields become descriptions in the OpenAPI document."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Readiness(Schema):
    ready: bool
    parts: dict[str, str]
    """Each part the service needs: 'ok', or what is wrong with it."""
    workers: str
    """'1 busy, 2 idle', or a sentence if there is none. Without workers, jobs are accepted and wait."""
    relay: str
    """'ok', or a sentence if there is none. Without a relay jobs run, but those of a lost worker are not run again."""


class FieldProblem(BaseModel):
    """One error in a request."""

    location: str = Field(description="The field at fault, such as 'body.threat_model.epsilon' or 'query.state'.")
    message: str = Field(description="What is wrong and what would be right.")


class Problem(BaseModel):
    """The body of every error response (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "about:blank",
                "title": "Unprocessable Content",
                "status": 422,
                "code": "invalid_input",
                "detail": "body.epochs: input should be greater than or equal to 1.",
                "errors": [{"location": "body.epochs", "message": "input should be greater than or equal to 1."}],
                "request_id": "4f5c0a9e6d3b4c1f8a7e2d1c0b9a8f7e",
            }
        }
    )

    type: str = Field(default="about:blank", description="Always 'about:blank': `code` distinguishes problems.")
    title: str = Field(description="The status in words.")
    status: int
    code: str = Field(description="What went wrong, for programs.")
    detail: str = Field(description="What went wrong and what to do, in a sentence or two.")
    errors: list[FieldProblem] = Field(default=[], description="Each field at fault, for validation errors.")
    request_id: str | None = Field(
        default=None,
        description="The request's X-Request-ID, which identifies it in the service's log; report it with a problem.",
    )
