"""The words that many answers use, and the form of an error."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class JobState(StrEnum):
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
"""States in which a worker holds the job."""


class JobKind(StrEnum):
    TRAIN = "train"
    EVALUATE = "evaluate"
    SHARD = "shard"
    """A share of an evaluation's points, as a job of its own."""
    EXTERNAL = "external"
    """A check of adversarial examples that somebody sent."""
    REPORT = "report"
    """A check of somebody's certificate of a network that only they have."""
    TRANSFER = "transfer"
    """Adversarial examples of one entry, tried on the network of another."""


class Provenance(StrEnum):
    """Who measured an entry's number."""

    VERIFIED = "verified"
    """A worker of this service."""
    IMPORTED = "imported"
    """RobustBench; taken from a file of its `model_info`."""
    REPORTED = "reported"
    """Nobody but the model's authors: as RobustBench has it, or with a certificate that agrees with itself."""


class Scope(StrEnum):
    """What a token allows; each allows what those before it do."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


class Schema(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Readiness(Schema):
    ready: bool
    parts: dict[str, str]
    """Each part the service needs: 'ok', or what is wrong with it."""
    workers: str
    """'1 busy, 2 idle', or that none was heard of. Without one, jobs are accepted and wait."""
    relay: str
    """'ok', or that none was heard of. Without one, jobs run, and those of a lost worker stay with it."""


class FieldProblem(BaseModel):
    """One thing that is wrong with a request."""

    location: str = Field(description="Where: 'body.threat_model.epsilon', 'query.state'.")
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

    type: str = Field(default="about:blank", description="Always 'about:blank': `code` tells problems apart.")
    title: str = Field(description="The status in words.")
    status: int
    code: str = Field(description="What went wrong, for programs.")
    detail: str = Field(description="What went wrong and what to do, in a sentence or two.")
    errors: list[FieldProblem] = Field(default=[], description="Each field at fault, for validation errors.")
    request_id: str | None = Field(
        default=None, description="The request's X-Request-ID, under which the service's log has it; tell it its owner."
    )
