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
    """What a run has used so far. Replaced by the next one."""

    type: Literal["resources"] = "resources"
    device: str
    """Name of the processor or GPU."""
    peak_memory_bytes: int
    """Most main memory that the run's process held at once."""
    peak_gpu_memory_bytes: int | None = None
    """Most memory that its tensors took on the GPU; null on a CPU."""
    cpu_seconds: float
    """Processor time of its process, over all cores."""


class AttackSoFar(Record):
    """An attack that has begun, on the points of one run."""

    attack: str
    points: int
    """Points that enter it, in all blocks."""
    done: int
    """Those of them in finished blocks: the first ones, in the order of the test images."""
    broken: int
    """Points of finished blocks that it broke."""


class PointsSoFar(Record):
    """What has become of an evaluation's points; of a shard, of its share."""

    points: int
    """All points of the run."""
    clean_done: int
    """Points whose clean image was classified."""
    clean_correct: int
    """Those of them classified correctly."""
    attacks: tuple[AttackSoFar, ...] = ()
    """In their order; only the last one has blocks left."""


class Progress(Record):
    """Where the run is. Replaced by the next one; nothing is lost if one is dropped."""

    type: Literal["progress"] = "progress"
    stage: str
    """What is being done, in a word or two: 'training', 'APGD-CE'."""
    fraction: float = Field(ge=0, le=1)
    """Share of the whole run that is done."""
    seconds_left: float | None = None
    """Estimated seconds until the run ends; null while there is nothing to estimate from."""
    detail: str = ""
    """Where in the stage: 'epoch 12 of 40', 'block 2 of 2'."""
    metrics: StepMetrics | None = None
    """What the latest step measured, while training."""
    points: PointsSoFar | None = None
    """What has become of the points, while an evaluation attacks them."""


class AttackFinished(Record):
    type: Literal["attack"] = "attack"
    outcome: AttackOutcome


class BlockSaved(Record):
    """A part of an evaluation that need not be run again, in a file."""

    type: Literal["block"] = "block"
    file: str
    """File name, relative to the run's directory."""
    number: int
    """The part's number, unique within the evaluation."""


class WeightsConverted(Record):
    """The weights that the run was given, as safetensors, so that no later run need read the original."""

    type: Literal["converted"] = "converted"
    file: str
    """File name, relative to the run's directory."""


class ProvisionalVerdict(Record):
    """What is certain before the last attacks: more can only be lost. Re-checked like a final one."""

    type: Literal["provisional"] = "provisional"
    outcome: EvaluationOutcome


class CheckpointSaved(Record):
    type: Literal["checkpoint"] = "checkpoint"
    file: str
    """File name, relative to the run's directory."""
    epoch: int
    """Epochs finished."""
    step: int = 0
    """Steps done in the epoch after them."""


class Failed(Record):
    type: Literal["failed"] = "failed"
    code: FailureCode
    message: str
    """What was found and what to do, in a sentence or two."""


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
