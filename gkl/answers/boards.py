"""What the service answers, as models: the contract that the service and its client share.

The service makes them from its rows, `gkl.client` reads them from its answers, and the OpenAPI document describes
them. Free of torch and of every server package.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gkl.errors import FailureCode
from gkl.outcome import CheckOutcome, CorruptionOutcome, EpochFinished, Flag, Progress, Resources


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


class AttackView(Schema):
    attack: str
    points: int
    """Points that entered: those that all attacks before left standing."""
    broken: int
    survivors: int
    seconds: float
    discarded: int
    """Misclassified images that it returned from outside the threat model; not counted."""
    loss: str | None
    targets: int | None
    """Classes it aimed at for each point."""


class AccuracyView(Schema):
    accuracy: float = Field(ge=0, le=1)
    correct: int | None
    """Null for a mean over corruptions."""
    points: int
    interval: tuple[float, float]
    """95 % Wilson interval."""


class EvaluationView(Schema):
    id: int
    job_id: int
    threat_model: str
    """Name of the board."""
    norm: str | None
    epsilon: float | None
    protocol: str
    is_complete: bool
    """Whether all test images were taken; only then is it ranked."""
    is_provisional: bool
    """The first attacks' upper bound, while the others run."""
    not_ranked: str | None
    """Why it has no place on a board, in words; null if it has, or will have when it is final."""
    clean: AccuracyView
    robust: AccuracyView | None
    """Under attack, or the mean over corruptions and severities; null for clean images alone."""
    attacks: list[AttackView]
    corruptions: list[CorruptionOutcome]
    mean_corruption_error: float | None
    """mCE; for ImageNet relative to AlexNet's errors in arXiv 1903.12261."""
    robustbench_mean_corruption_error: float | None
    """mCE as RobustBench has it, relative to the errors of its own AlexNet; null but for ImageNet."""
    unreliable: bool
    """Whether there is a flag."""
    flags: list[Flag]
    checks: list[CheckOutcome]
    """What was checked of the network itself and what could not be; empty for older measurements."""
    checks_seed: int | None
    """Seed of the points that the checks looked at."""
    certificate_sha256: str | None
    """Of the file at /api/v1/evaluations/{id}/certificate."""
    seconds: float
    created_at: datetime
    manifest: dict[str, Any]
    """Spec, commit, package versions, device, seed and the sha256 of data and weights."""


class ModelView(Schema):
    id: int
    name: str
    dataset: str
    architecture: str
    loss: str | None
    weights_sha256: str
    """Of the file of weights."""
    weights_key: str
    """Which network of the file it is, where that holds several; else empty."""
    train_job_id: int | None
    created_at: datetime


class PointView(Schema):
    index: int
    """Its place among the test images."""
    label: int
    prediction: int
    """The class of the clean image."""
    broken_by: str | None
    """The attack that broke it; null if it stands, or was misclassified without one."""
    adversarial_prediction: int | None
    """The class of its adversarial example; -1 where the model answered NaN."""
    perturbation_norm: float | None
    """Distance of that example, in units of the pixel range."""


class TakenFor(Schema):
    label: int
    name: str
    count: int


class ClassView(Schema):
    """The test images of one class."""

    label: int
    name: str
    points: int
    clean: float
    """Share that is classified correctly."""
    robust: float
    """Share that withstands every attack."""
    taken_for: list[TakenFor]
    """As what the adversarial examples of the class are classified, the most frequent first."""


class UploadView(Schema):
    sha256: str
    """What an evaluation's spec says as `weights`."""
    format: str
    """'safetensors', or 'torch' for a state dict of torch.save."""
    size_bytes: int
    created_at: datetime
    """When they were sent last."""


class Withdrawal(Schema):
    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]{3,}$")]
    """Shown on the entry's page and board."""


class RankNote(Schema):
    model_config = ConfigDict(extra="forbid")

    note: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]{3,}$")]
    """Why the entry is ranked although its flags bar it; shown on the entry's page."""


class LimitsView(Schema):
    """Null is without limit."""

    queued_jobs: int | None
    running_jobs: int | None
    gpu_hours_per_day: float | None
    """Hours on workers in a day of UTC."""
    upload_bytes: int | None
    """Of weights that are kept."""
    requests_per_minute: int | None


class UsedView(Schema):
    queued_jobs: int
    running_jobs: int
    gpu_hours_today: float
    """Since 00:00 UTC, with the attempts that go on."""
    upload_bytes: int


class IdentityView(Schema):
    """Whoever asks."""

    name: str
    """'anonymous' without a token."""
    scope: Scope | None
    """Null: nothing is allowed without a token."""
    limits: LimitsView
    used: UsedView


class AuditView(Schema):
    id: int
    created_at: datetime
    actor: str
    """A token's name, or 'command line'."""
    action: str
    subject: str
    detail: dict[str, Any]


class AuditPage(Schema):
    records: list[AuditView]
    next_cursor: int | None
    """Send it as `cursor` to get the next, older page; null on the last one."""


class NumberView(Schema):
    """An accuracy of an entry, as a share."""

    accuracy: float = Field(ge=0, le=1)
    interval: tuple[float, float]
    """95 % Wilson interval."""


class ExternalAttackView(Schema):
    """Adversarial examples that somebody sent, and that held."""

    name: str
    submitter: str
    job_id: int
    examples: int
    broken: int
    """Of points that stood until then."""
    created_at: datetime


class Anomaly(BaseModel):
    """Something in a file that is not as it should be. It is kept as it is."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    file: str
    """<data set>/<threat model>/<model id>.json"""
    field: str | None
    """The key it is about; null for the file as a whole."""
    what: str
    """What was found, in words."""


class EntryView(Schema):
    id: int
    dataset: str
    threat_model: str
    model_id: str
    """RobustBench's model id, the name of the file in an export."""
    rank: int | None
    """On the whole board; null if the verdict is provisional, withdrawn, not to be believed, or without a number."""
    rank_band: tuple[int, int] | None = None
    """First and last of the ranks that it may have at 95 % confidence: those of entries that its points or figures do
    not tell apart from it. Null without a rank, on boards of corruptions, and outside boards, entries and exports."""
    provenance: Provenance
    """'verified': measured here; 'imported': by RobustBench; 'reported': by the authors alone."""
    name: str
    authors: str
    link: str
    venue: str
    year: int | None
    architecture: str
    family: str
    loss: str | None
    footnote: str
    """May hold HTML and LaTeX, as RobustBench's do."""
    extra_data: bool | None
    synthetic_data: bool
    epsilon: float | None
    points: int
    """Test images behind the accuracies."""
    num_parameters: int | None
    """Of the network; null where this service does not know the network."""
    clean: NumberView | None
    robust: NumberView | None
    """Best known, by which it ranks: external, else AutoAttack's; on corruptions their mean."""
    autoattack: NumberView | None
    external: NumberView | None
    """What is left after attacks other than AutoAttack."""
    reported: float | None
    """What the authors say, as a share."""
    mean_corruption_error: float | None
    """mCE; for ImageNet relative to AlexNet's errors in arXiv 1903.12261. Null for what was imported."""
    robustbench_mean_corruption_error: float | None
    """mCE as RobustBench has it, relative to the errors of its own AlexNet: from its file, or measured here."""
    corruptions_3d_accuracy: float | None
    """On corruptions in 3D, as a share, where the imported file has it beside the common corruptions or alone."""
    corruptions_3d_error: float | None
    """Its mean error relative to AlexNet's, from the same file."""
    unreliable: bool
    is_provisional: bool
    withdrawn: str | None
    """Why an admin took its rank; null for most entries."""
    unrankable: str | None
    """Why its figure cannot be believed and what its owner can do; null for most entries."""
    rank_note: str | None
    """Why an admin has ranked it all the same."""
    anomalies: list[Anomaly]
    """What is not as it should be in the file it was imported from."""
    weights_id: int | None
    """The model at /api/v1/models/{id}, where its weights are here."""
    evaluation_id: int | None
    """The evaluation it stands with, where it was measured here."""
    created_at: datetime
    changed_at: datetime


class EntryDetail(EntryView):
    external_attacks: list[ExternalAttackView]
    """Those that held, in the order in which they were sent."""
    next_cursor: int | None
    """Send it as `cursor` to get the next of those attacks; null if there are no more."""


class ModelDetail(ModelView):
    evaluations: list[EvaluationView]
    """Newest first."""
    next_cursor: int | None
    """Send it as `cursor` to get the next, older evaluations; null if there are no more."""
    entries: list[EntryView]
    """Its place on each board that it is on."""


class BoardPointView(Schema):
    """A test image, by how many networks of a board lose it."""

    index: int
    """Its place among the test images, from 0."""
    lost_by: int
    """How many of them get it wrong, with an attack or without."""


class BoardPointsView(Schema):
    """The test images of a board, by how many of its networks lose them: of those that were measured here."""

    entries: list[int]
    """The entries whose points are known and that have a rank, the first rank first."""
    counts: list[int]
    """How many images are lost by none of them, by one, ..., by all; empty without such entries."""
    points: list[BoardPointView]
    next_cursor: int | None
    """Send it as `cursor` to get the next of them; null if there are no more."""


class PairView(Schema):
    """Two entries of one board: whether one is better than the other."""

    first_id: int
    second_id: int
    sentence: str
    """What was found, with the interval and the p-value."""
    is_paired: bool
    """Whether they were compared point by point; else by their accuracies alone, as if on different images."""
    points: int
    """Points of the first; the same ones as the second's where `is_paired`."""
    both: int | None
    """Points that withstand every attack on both; null where it is not paired."""
    only_first: int | None
    only_second: int | None
    neither: int | None
    difference: float
    """Robust accuracy of the first minus that of the second, as a share."""
    interval: tuple[float, float]
    """95 % interval of the difference: Tango's score interval, or Newcombe's where it is not paired."""
    p_value: float
    """Of McNemar's exact test, or of the score test of two shares."""
    is_told_apart: bool
    """Whether the p-value is below 0.05."""


class TransferCountsView(Schema):
    """Adversarial examples of one entry, tried on the network of another."""

    examples: int
    """Examples that were tried."""
    clean_correct: int
    """Those whose clean image the other network gets right."""
    broken: int
    """Those of `clean_correct` whose adversarial image it gets wrong."""
    share: float | None = Field(ge=0, le=1)
    """`broken` of `clean_correct`; null where that is 0."""
    interval: tuple[float, float]
    """95 % Wilson interval of the share."""


class TransferByAttackView(TransferCountsView):
    attack: str
    """The attack that found these examples."""


class TransferView(Schema):
    """How many adversarial examples of one entry break another: asked for, and, once its job has ended, measured."""

    id: int
    source_id: int
    """The entry whose examples they are."""
    target_id: int
    """The entry on whose network they are tried."""
    job_id: int
    state: JobState
    """Of the job."""
    submitter: str
    created_at: datetime
    is_current: bool
    """Whether the source still stands with the certificate whose examples these are."""
    counts: TransferCountsView | None
    """Null until it is measured."""
    attacks: list[TransferByAttackView]
    """The same for each attack that found examples for the source."""
    newly_broken: int = 0
    """Those that broke points of the target that had stood: they lower its `external` accuracy."""
    answers_vary: bool = False
    """The target answers differently each time, so that the counts are those of this run alone."""


class PairTransferView(Schema):
    """Whether what breaks one of two entries breaks the other."""

    source_id: int
    target_id: int
    sentence: str | None
    """What was found; null while nothing is measured."""
    measured: TransferView | None
    """The newest."""
    job_id: int | None
    """The job that measures it now; null if none does."""
    can_be_measured: bool
    """Whether `POST /api/v1/entries/{target_id}/transfers` takes it now."""
    why_not: str | None
    """Why the two cannot be measured as they are; null if they can."""


class TransferRequest(Schema):
    """Which examples to try on an entry."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    source: int = Field(ge=1, le=2**63 - 1, examples=[3])
    """Number of the entry whose adversarial examples they are."""


class SpecDifference(Schema):
    """A field in which the specs differ."""

    field: str
    """'train.objective.ce_weight', 'evaluate.protocol'."""
    values: list[Any]
    """Of each entry, in their order; null where it is not known here, or its spec has none."""


class ComparisonView(Schema):
    """Entries side by side."""

    entries: list[EntryView]
    pairs: list[PairView]
    """Every two of one board of attacks of which points or figures are known."""
    differences: list[SpecDifference]
    transfers: list[PairTransferView]
    """For each entry on each other, whether its adversarial examples break that one too."""


class BoardSummary(Schema):
    dataset: str
    threat_model: str
    title: str
    norm: str | None
    epsilon: float | None
    num_entries: int


class BoardDetail(BoardSummary):
    count: int
    """How many entries the view has, on all its pages."""
    entries: list[EntryView]
    """Those of this page of the view, in its order."""
    next_cursor: str | None
    """Send it as `cursor` to get the next page; null on the last one."""


class ModelInfoFiles(Schema):
    """Files of RobustBench's `model_info`, to be imported."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    files: dict[str, str] = Field(
        max_length=10_000, examples=[{"cifar10/Linf/Carmon2019Unlabeled.json": '{"name": "..."}'}]
    )
    """<data set>/<threat model>/<model id>.json -> the file's text, to the letter."""


class Readiness(Schema):
    ready: bool
    parts: dict[str, str]
    """Each part the service needs: 'ok', or what is wrong with it."""
    workers: str
    """'1 busy, 2 idle', or that none was heard of. Without one, jobs are accepted and wait."""
    relay: str
    """'ok', or that none was heard of. Without one, jobs run, and those of a lost worker stay with it."""


# --- errors ------------------------------------------------------------------------------------------------------


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
