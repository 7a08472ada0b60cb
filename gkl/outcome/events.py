"""Events that a run reports while it works, and the record with which it ends: the lines that a runner prints."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from gkl.errors import FailureCode
from gkl.outcome.common import Record
from gkl.outcome.evaluation import AttackOutcome, EvaluationOutcome, ShardOutcome
from gkl.outcome.evidence import ExternalOutcome, ReportOutcome, TransferOutcome
from gkl.outcome.training import EpochFinished, StepMetrics, TrainOutcome


class Resources(Record):
    """What a run has used so far. Each report replaces the one before it."""

    type: Literal["resources"] = "resources"
    device: str
    """Name of the processor or GPU."""
    peak_memory_bytes: int
    """The most main memory that the run's process held at once."""
    peak_gpu_memory_bytes: int | None = None
    """The most GPU memory that its tensors took at once; null on a CPU."""
    cpu_seconds: float
    """Processor time of its process, over all cores."""


class AttackSoFar(Record):
    """An attack that has begun, on the points of one run."""

    attack: str
    points: int
    """Points that it attacks, in all blocks."""
    done: int
    """Those of them in finished blocks: the first ones, in the order of the test images."""
    broken: int
    """Points of finished blocks that it broke."""


class PointsSoFar(Record):
    """What has become of the points of an evaluation or of a shard."""

    points: int
    """All points of the run."""
    clean_done: int
    """Points whose clean image was classified."""
    clean_correct: int
    """Those of them classified correctly."""
    attacks: tuple[AttackSoFar, ...] = ()
    """The attacks that have begun, in their order; only the last one may be unfinished."""


class Progress(Record):
    """How far a run is. Each report replaces the one before it, so that nothing is lost if one is dropped."""

    type: Literal["progress"] = "progress"
    stage: str
    """What is being done, in a word or two: 'training', 'APGD-CE'."""
    fraction: float = Field(ge=0, le=1)
    """Share of the whole run that is done."""
    seconds_left: float | None = None
    """Estimated seconds until the run ends; null while there is nothing to estimate from."""
    detail: str = ""
    """The position within the stage: 'epoch 12 of 40', 'block 2 of 2'."""
    metrics: StepMetrics | None = None
    """What the latest step measured, while training."""
    points: PointsSoFar | None = None
    """What has become of the points, while an evaluation attacks them."""


class AttackFinished(Record):
    type: Literal["attack"] = "attack"
    outcome: AttackOutcome


class BlockSaved(Record):
    """A finished part of an evaluation is saved in a file and need not be run again."""

    type: Literal["block"] = "block"
    file: str
    """File name, relative to the run's directory."""
    number: int
    """The part's number, unique within the evaluation."""


class WeightsConverted(Record):
    """The run's weights are saved as safetensors, so that no later run has to read the original file."""

    type: Literal["converted"] = "converted"
    file: str
    """File name, relative to the run's directory."""


class ProvisionalVerdict(Record):
    """The verdict before the last attacks, which can only lower it. It was re-checked like a final one."""

    type: Literal["provisional"] = "provisional"
    outcome: EvaluationOutcome


class CheckpointSaved(Record):
    type: Literal["checkpoint"] = "checkpoint"
    file: str
    """File name, relative to the run's directory."""
    epoch: int
    """Epochs finished."""
    step: int = 0
    """Steps done in the next epoch."""


class Failed(Record):
    type: Literal["failed"] = "failed"
    code: FailureCode
    message: str
    """What went wrong and what to do, in a sentence or two."""


class Interrupted(Record):
    """The run was asked to stop and can be resumed."""

    type: Literal["interrupted"] = "interrupted"


Event: TypeAlias = (
    Progress
    | Resources
    | EpochFinished
    | AttackFinished
    | CheckpointSaved
    | BlockSaved
    | WeightsConverted
    | ProvisionalVerdict
)
Ending: TypeAlias = (
    TrainOutcome
    | EvaluationOutcome
    | ShardOutcome
    | ExternalOutcome
    | ReportOutcome
    | TransferOutcome
    | Failed
    | Interrupted
)
MESSAGE: TypeAdapter[Event | Ending] = TypeAdapter(
    Annotated[Event | Ending, Field(discriminator="type")],
)
