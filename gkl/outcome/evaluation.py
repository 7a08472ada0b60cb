"""What a run reports while it works and when it ends. Free of torch.

The runner writes these models as JSON lines, the supervisor reads them, the database keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from gkl.errors import FailureCode
from gkl.flags import FlagName, unrankable


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def wilson_interval(successes: float, trials: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a proportion; with the default z, at 95 % confidence.

    Both need not be whole: an effective number of trials is no count.

    >>> low, high = wilson_interval(5709, 10000)
    >>> f"{low:.4f} {high:.4f}"
    '0.5612 0.5806'
    """
    if trials <= 0:
        return (0.0, 1.0)
    p = successes / trials
    scale = 1 + z * z / trials
    center = (p + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return (max(0.0, center - half), min(1.0, center + half))


class Manifest(Record):
    """Where a result comes from: everything needed to measure it again."""

    spec: dict[str, Any]
    """The spec, complete."""
    git_commit: str | None
    """Commit of the engine's source, with '+changes' if files differed from it; null outside a checkout."""
    packages: dict[str, str]
    """Versions of the packages that computed the result."""
    python: str
    device: str
    """Name of the processor or GPU."""
    seed: int
    dataset_sha256: str
    """sha256 over the images and labels that the run used; over names and sizes for ImageNet's files."""
    synthetic_sha256: str | None = None
    """sha256 over the checksums in the .npz of generated images, where a training used one."""
    weights_sha256: str
    """sha256 of the file with the weights, made by a training or attacked by an evaluation."""
    weights_key: str | None = None
    """Which network of that file was evaluated, where it holds weights of others too; null where it is the only one."""
    weights_notes: tuple[str, ...] = ()
    """What was done with the file's tensors besides copying them, each in a sentence: a conversion to float32."""
    dtype: str | None = None
    """Number format of the network's weights, for an evaluation: 'float32'."""
    batch_size_used: int | None = None
    """Most images that an evaluation's model was given at once after the device's memory had its say; smaller than
    the spec's batch_size where that was too much."""
    preprocessing: str | None = None
    """How an evaluation's images were resized and cropped, for ImageNet: 'BicubicRes256Crop224'. Evaluations of
    earlier versions name none and used 'Res256Crop224'."""


class AttackOutcome(Record):
    """One attack of an evaluation. An attack only sees the points that all before it left standing."""

    attack: str
    points: int
    """Points that entered the attack."""
    broken: int
    """Points for which it found an adversarial example."""
    seconds: float
    """Time of its finished blocks, also of those before an interruption or on another machine."""
    discarded: int = 0
    """Images it returned that are misclassified but outside the threat model; not counted as broken."""
    loss: str | None = None
    """The loss it increases, where it has a choice: 'ce', 'dlr', 'dlr-targeted'; with too few classes for DLR,
    'margin' or 'ce-targeted'."""
    targets: int | None = None
    """Classes it aims at for each point, if it is targeted."""

    @property
    def survivors(self) -> int:
        return self.points - self.broken


class Flag(Record):
    """A reason not to trust a verdict, found while it was measured."""

    name: FlagName
    sentence: str
    """What was seen and what it means, for a reader of the leaderboard."""
    value: float | None = None
    """The measured quantity, where there is one: a share, a distance."""


_GAP_POINTS, _GAP_SHARE = 3, 0.01


def gap(attacks: Mapping[str, int], num_points: int, *, external: int = 0) -> Flag | None:
    """Whether attacks that do not trust the network's gradients broke points that gradient attacks had left.

    At 10,000 points Square breaks a few of any network after the others, and at a few dozen one or two: only more than
    three points and more than one in a hundred count.

    Args:
        attacks: what each attack of an evaluation broke, by its name, in their order.
        num_points: all points of the evaluation.
        external: what examples that somebody sent broke after them.
    """
    # What comes first has nothing before it to contradict.
    found = {name: attacks[name] for name in list(attacks)[1:] if name in ("Square", *BEYOND_AUTOATTACK)}
    if external:
        found["examples that were sent"] = external
    broken = sum(found.values())
    if broken <= max(_GAP_POINTS, _GAP_SHARE * num_points):
        return None
    said = ", ".join(f"{name} {count}" for name, count in found.items() if count)
    return Flag(
        name="gap",
        sentence=f"{broken} points that the attacks on gradients had left were broken after them ({said}).",
        value=broken / num_points,
    )


CheckName = Literal[
    "wrong_gradients",
    "lost_slope",
    "zero_gradients",
    "coarse",
    "ties",
    "cliff",
    "near_cliff",
    "two_faces",
    "remembers",
    "batch_dependent",
    "randomized",
    "repair",
    "transfer",
]


class CheckOutcome(Record):
    """One check of whether the attacks saw the network as it is. A check that did not run is not a check passed."""

    name: CheckName
    value: float | None = None
    """The measured quantity; null where the check did not run."""
    limit: float | None = None
    """The value above which the flag of this check is raised."""
    points: int = 0
    """Images that it looked at."""
    note: str = ""
    """Why it did not run, or what its value is."""
    sources: tuple[str, ...] = ()
    """sha256 of the other networks' certificates that it tried, for 'transfer'."""

    @property
    def ran(self) -> bool:
        return self.value is not None


REPAIR, TRANSFER = "Repair", "Transfer"
BEYOND_AUTOATTACK = (REPAIR, TRANSFER)
"""Attacks that run after the protocol's own; what they break counts, but not as AutoAttack's figure."""


def broken_beyond_autoattack(attacks: Mapping[str, int]) -> int:
    """Points that only those attacks broke, by what each attack of an evaluation broke."""
    return sum(attacks.get(name, 0) for name in BEYOND_AUTOATTACK)


class CorruptionOutcome(Record):
    """One corruption in one severity."""

    corruption: str
    severity: int
    points: int
    correct: int
    seconds: float
    data_sha256: str
    """Of all its images and labels; over names and sizes for ImageNet's files."""


class TrainOutcome(Record):
    type: Literal["trained"] = "trained"
    weights: str
    """File name of the weights, relative to the run's directory."""
    epochs: int
    selected_epoch: int | None = None
    """The epoch whose weights these are, where the spec has a selection."""
    held_out_clean_accuracy: float | None = None
    """Its accuracy on the held-out training images."""
    held_out_robust_accuracy: float | None = None
    """Its accuracy on them under PGD."""
    seconds: float
    """Training time of the whole run, resumed parts included."""
    manifest: Manifest


class EvaluationOutcome(Record):
    type: Literal["evaluated"] = "evaluated"
    num_points: int
    clean_correct: int
    """Points classified correctly without perturbation."""
    robust_correct: int | None = None
    """Points for which no attack found an adversarial example; null without attacks."""
    attacks: list[AttackOutcome] = []
    corruptions: list[CorruptionOutcome] = []
    mean_corruption_error: float | None = None
    """mCE: for ImageNet relative to AlexNet's errors (arXiv 1903.12261), else the mean error itself; 1 is AlexNet's."""
    robustbench_mean_corruption_error: float | None = None
    """mCE as RobustBench's leaderboard has it: for ImageNet relative to the errors of its own AlexNet; null for other
    data sets, and in outcomes of earlier versions."""
    flags: list[Flag] = []
    """Why not to trust it; empty if nothing was found."""
    checks: list[CheckOutcome] = []
    """What was checked of the network itself, and what could not be; empty in results of versions before 0.2."""
    checks_seed: int | None = None
    """Seed of the points that the checks looked at, drawn anew for each run: known points can be prepared for."""
    answers_vary: bool = False
    """The model answers differently each time, or depending on the rest of a batch, so that no number of it can be
    re-checked exactly."""
    certificate: str | None = None
    """File name of the certificate, relative to the run's directory."""
    seconds: float
    """Working time, also before an interruption."""
    manifest: Manifest

    @property
    def robust_accuracy(self) -> float | None:
        """Accuracy under attack, or the mean over corruptions and severities; None for clean images alone."""
        if self.corruptions:
            return sum(c.correct / c.points for c in self.corruptions) / len(self.corruptions)
        return None if self.robust_correct is None else self.robust_correct / self.num_points

    @property
    def autoattack_correct(self) -> int | None:
        """Points that the protocol's own attacks left standing; None without attacks."""
        if self.robust_correct is None:
            return None
        return self.robust_correct + broken_beyond_autoattack({each.attack: each.broken for each in self.attacks})

    @property
    def unrankable(self) -> str | None:
        """Why the figure cannot be believed, in a sentence or two; None if nothing speaks against it."""
        return unrankable(self.flags)


class ShardOutcome(Record):
    """A shard's parts are all there; the evaluation that puts them together makes the verdict."""

    type: Literal["shard"] = "shard"
    seconds: float
    """Time that this run took."""


class ExternalOutcome(Record):
    """Somebody's adversarial examples, each of which holds."""

    type: Literal["external"] = "external"
    attack: str
    examples: int
    """Examples that were sent and checked."""
    broken: int
    """Those of points that stood until then."""
    robust_correct: int
    """Points that still stand."""
    base_sha256: str
    """Of the certificate that they were merged with."""
    certificate: str | None = None
    """File name of the merged certificate, relative to the run's directory; null if nothing new was broken."""
    device: str
    seconds: float


class ReportOutcome(Record):
    """Somebody's certificate of their own network, which agrees with itself and with the data."""

    type: Literal["report"] = "report"
    evaluation: dict[str, Any]
    """The spec of the evaluation that it says it is of."""
    attacks: tuple[str, ...]
    """Those that it says were tried."""
    num_points: int
    clean_correct: int
    robust_correct: int
    """Points that no example in it breaks, if the network answers as it says."""
    weights_sha256: str
    """What it says that its owner's weights hash to."""
    flags: tuple[Flag, ...] = ()
    """Reasons not to trust it that its owner's run found."""
    seconds: float


class TransferCounts(Record):
    """Adversarial examples that were made for one network, tried on another."""

    examples: int
    """Examples that were tried."""
    clean_correct: int
    """Those whose clean image the other network gets right."""
    broken: int
    """Those of `clean_correct` whose adversarial image it gets wrong."""

    @property
    def share(self) -> float | None:
        """Of the examples whose clean image the other network gets right, those that break it; None without any."""
        return self.broken / self.clean_correct if self.clean_correct else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the share."""
        return wilson_interval(self.broken, self.clean_correct)


class TransferByAttack(TransferCounts):
    attack: str
    """The attack that found these examples."""


class TransferOutcome(TransferCounts):
    """What the adversarial examples of one entry do to another."""

    type: Literal["transferred"] = "transferred"
    attacks: tuple[TransferByAttack, ...]
    """The same for each attack that found examples, in their order."""
    answers_vary: bool
    """The other network answers differently each time, so that the counts are those of this run alone."""
    merged: ExternalOutcome
    """What they add to the other entry's certificate: its `broken` are those of points that stood until then."""
    seconds: float


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


class StepMetrics(Record):
    """The latest training step."""

    step: int
    """Steps done, of `steps`, in the whole run."""
    steps: int
    loss: float
    parts: dict[str, float]
    """The loss's parts before their weights: 'natural', and 'kl', 'dkl', or 'ce' and 'wmse'."""
    clean_accuracy: float
    """Accuracy on the batch's natural images."""
    adversarial_accuracy: float
    """Accuracy on the batch's adversarial images."""
    images_per_second: float | None = None
    """Natural images trained on per second, since the report before; null in the first."""


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


class EpochFinished(Record):
    """One point of the training curve; accuracies are means over the epoch's training batches."""

    type: Literal["epoch"] = "epoch"
    epoch: int
    epochs: int
    loss: float
    clean_accuracy: float
    adversarial_accuracy: float
    """Accuracy on the adversarial images of the inner maximization."""
    epsilon: float
    learning_rate: float
    """That of the epoch's last step."""
    seconds: float
    parts: dict[str, float] = {}
    """Means of the loss's parts before their weights."""
    held_out_clean_accuracy: float | None = None
    """Accuracy on the held-out training images, where the spec has a selection and this epoch was measured."""
    held_out_robust_accuracy: float | None = None
    """Accuracy on them under PGD; the epoch with the highest is the result."""


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
