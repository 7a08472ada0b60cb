"""What the API answers, as models: the contract that clients read in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from app import entries, jobs
from app.robustbench import Anomaly
from app.tables import (
    AttackResult,
    AuditRecord,
    Entry,
    Evaluation,
    ExternalAttack,
    Job,
    JobKind,
    JobState,
    Model,
    Provenance,
    Scope,
    Upload,
)
from app.workers import WorkerStatus
from gkl.errors import FailureCode
from gkl.outcome import CheckOutcome, CorruptionOutcome, Flag, Progress, Resources


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

    @classmethod
    def of(cls, job: Job, model: Model | None, entry_id: int | None = None) -> Self:
        progress = jobs.progress(job)
        return cls(
            id=job.id,
            kind=job.kind,
            name=job.name,
            state=job.state,
            submitter=job.submitter,
            priority=job.priority,
            parent_id=job.parent_id,
            child_ids=[follower.id for follower in job.followers],
            shard=None if job.shard_index is None else job.shard_index + 1,
            shard_ids=[shard.id for shard in job.shards],
            attempt=job.attempt,
            worker=job.worker,
            lost_leases=job.lost_leases,
            due_at=job.due_at,
            run_seconds=job.run_seconds,
            progress=None if progress is None else Progress.model_validate(progress),
            resources=None if job.resources is None else Resources.model_validate(job.resources),
            failure=None
            if job.failure_code is None
            else FailureView(code=job.failure_code, message=job.failure_message or ""),
            model_id=None if model is None else model.id,
            weights_sha256=None if model is None else model.weights_sha256,
            entry_id=entry_id,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            spec=job.spec,
        )


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
    started_at: datetime
    heard_at: datetime
    """Its last heartbeat."""
    version: str

    @classmethod
    def of(cls, status: WorkerStatus) -> Self:
        row = status.row
        return cls(
            name=row.name,
            host=row.host,
            device=row.device,
            state=status.state,
            problem=row.problem,
            job_id=None if status.job is None else status.job.id,
            started_at=row.started_at,
            heard_at=row.heard_at,
            version=row.version,
        )


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

    @classmethod
    def of(cls, result: AttackResult) -> Self:
        return cls(
            attack=result.attack,
            points=result.points,
            broken=result.broken,
            survivors=result.survivors,
            seconds=result.seconds,
            discarded=result.discarded,
            loss=result.loss,
            targets=result.targets,
        )


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

    @classmethod
    def of(cls, evaluation: Evaluation) -> Self:
        return cls(
            id=evaluation.id,
            job_id=evaluation.job_id,
            threat_model=evaluation.board,
            norm=evaluation.norm,
            epsilon=evaluation.epsilon,
            protocol=evaluation.protocol,
            is_complete=evaluation.is_complete,
            is_provisional=evaluation.is_provisional,
            not_ranked=entries.why_not_ranked(evaluation),
            clean=AccuracyView(
                accuracy=evaluation.clean_accuracy,
                correct=evaluation.clean_correct,
                points=evaluation.num_points,
                interval=evaluation.clean_interval,
            ),
            robust=None
            if evaluation.robust_accuracy is None or evaluation.robust_interval is None
            else AccuracyView(
                accuracy=evaluation.robust_accuracy,
                correct=evaluation.robust_correct,
                points=evaluation.num_points,
                interval=evaluation.robust_interval,
            ),
            attacks=[AttackView.of(result) for result in evaluation.attacks],
            corruptions=[CorruptionOutcome.model_validate(each) for each in evaluation.corruptions],
            mean_corruption_error=evaluation.mean_corruption_error,
            robustbench_mean_corruption_error=evaluation.robustbench_mean_corruption_error,
            unreliable=evaluation.is_unreliable,
            flags=[Flag.model_validate(flag) for flag in evaluation.flags],
            checks=[CheckOutcome.model_validate(check) for check in evaluation.checks],
            checks_seed=evaluation.checks_seed,
            certificate_sha256=evaluation.certificate_sha256,
            seconds=evaluation.seconds,
            created_at=evaluation.created_at,
            manifest=evaluation.manifest,
        )


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

    @classmethod
    def of(cls, model: Model) -> Self:
        return cls(
            id=model.id,
            name=model.name,
            dataset=model.dataset,
            architecture=model.architecture,
            loss=model.loss,
            weights_sha256=model.weights_sha256,
            weights_key=model.weights_key,
            train_job_id=model.train_job_id,
            created_at=model.created_at,
        )


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


class UploadView(Schema):
    sha256: str
    """What an evaluation's spec says as `weights`."""
    format: str
    """'safetensors', or 'torch' for a state dict of torch.save."""
    size_bytes: int
    created_at: datetime
    """When they were sent last."""

    @classmethod
    def of(cls, upload: Upload) -> Self:
        return cls(
            sha256=upload.sha256, format=upload.format, size_bytes=upload.size_bytes, created_at=upload.created_at
        )


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

    @classmethod
    def of(cls, found: AuditRecord) -> Self:
        return cls(
            id=found.id,
            created_at=found.created_at,
            actor=found.actor,
            action=found.action,
            subject=found.subject,
            detail=found.detail,
        )


class AuditPage(Schema):
    records: list[AuditView]
    next_cursor: int | None
    """Send it as `cursor` to get the next, older page; null on the last one."""


class NumberView(Schema):
    """An accuracy of an entry, as a share."""

    accuracy: float = Field(ge=0, le=1)
    interval: tuple[float, float]
    """95 % Wilson interval."""

    @classmethod
    def of(cls, entry: Entry, accuracy: float | None) -> Self | None:
        return None if accuracy is None else cls(accuracy=accuracy, interval=entry.interval_of(accuracy))


class ExternalAttackView(Schema):
    """Adversarial examples that somebody sent, and that held."""

    name: str
    submitter: str
    job_id: int
    examples: int
    broken: int
    """Of points that stood until then."""
    created_at: datetime


class EntryView(Schema):
    id: int
    dataset: str
    threat_model: str
    model_id: str
    """RobustBench's model id, the name of the file in an export."""
    rank: int | None
    """On the whole board; null if the verdict is provisional, withdrawn, not to be believed, or without a number."""
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

    @classmethod
    def of(cls, row: entries.Ranked) -> Self:
        entry = row.entry
        return cls(
            id=entry.id,
            dataset=entry.dataset,
            threat_model=entry.board,
            model_id=entry.slug,
            rank=row.rank,
            provenance=entry.provenance,
            name=entry.name,
            authors=entry.authors,
            link=entry.link,
            venue=entry.venue,
            year=entry.year,
            architecture=entry.architecture,
            family=entry.family,
            loss=entry.loss,
            footnote=entry.footnote,
            extra_data=entry.extra_data,
            synthetic_data=entry.synthetic_data,
            epsilon=entry.epsilon,
            points=entry.num_points,
            clean=NumberView.of(entry, entry.clean_accuracy),
            robust=NumberView.of(entry, entry.robust_accuracy),
            autoattack=NumberView.of(entry, entry.autoattack_accuracy),
            external=NumberView.of(entry, entry.external_accuracy),
            reported=entry.reported_accuracy,
            mean_corruption_error=entry.mean_corruption_error,
            robustbench_mean_corruption_error=entry.robustbench_mean_corruption_error,
            unreliable=entry.unreliable,
            is_provisional=entry.is_provisional,
            withdrawn=entry.withdrawn_reason,
            unrankable=entry.unrankable_reason,
            rank_note=entry.rank_note,
            anomalies=[Anomaly.model_validate(each) for each in entry.anomalies],
            weights_id=entry.model_id,
            evaluation_id=entry.evaluation_id,
            created_at=entry.created_at,
            changed_at=entry.changed_at,
        )


class EntryDetail(EntryView):
    external_attacks: list[ExternalAttackView]
    """Those that held, in the order in which they were sent."""
    next_cursor: int | None
    """Send it as `cursor` to get the next of those attacks; null if there are no more."""

    @classmethod
    def with_attacks(cls, row: entries.Ranked, found: Sequence[ExternalAttack], next_cursor: int | None) -> Self:
        attacks = [
            ExternalAttackView(
                name=attack.name,
                submitter=attack.submitter,
                job_id=attack.job_id,
                examples=attack.examples,
                broken=attack.broken or 0,
                created_at=attack.created_at,
            )
            for attack in found
            if attack.examples is not None
        ]
        return cls(**EntryView.of(row).model_dump(), external_attacks=attacks, next_cursor=next_cursor)


class ModelDetail(ModelView):
    evaluations: list[EvaluationView]
    """Newest first."""
    next_cursor: int | None
    """Send it as `cursor` to get the next, older evaluations; null if there are no more."""
    entries: list[EntryView]
    """Its place on each board that it is on."""


class BoardSummary(Schema):
    dataset: str
    threat_model: str
    title: str
    norm: str | None
    epsilon: float | None
    num_entries: int

    @classmethod
    def of(cls, board: entries.Board) -> Self:
        return cls(
            dataset=board.dataset,
            threat_model=board.name,
            title=board.title,
            norm=board.norm,
            epsilon=board.epsilon,
            num_entries=board.num_entries,
        )


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
