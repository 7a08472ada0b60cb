"""How rows become what the API answers: the models of `gkl.answers`, made from those of `app.tables`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from app import entries, jobs
from app.tables import AttackResult, AuditRecord, Entry, Evaluation, ExternalAttack, Job, Model, Upload
from app.workers import WorkerStatus
from gkl.answers import (
    AccuracyView,
    AttackView,
    AuditView,
    BoardSummary,
    EntryDetail,
    EntryView,
    EvaluationView,
    ExternalAttackView,
    FailureView,
    JobView,
    ModelView,
    NumberView,
    UploadView,
    WorkerView,
)

_Answer = TypeVar("_Answer", bound=BaseModel)


def _made(answer: type[_Answer], row: object, **others: Any) -> _Answer:
    """Each field that is not given here comes from the row's attribute of the same name."""
    same = answer.model_fields.keys() - others.keys()
    return answer.model_validate({name: getattr(row, name) for name in same} | others)


def job_view(
    job: Job,
    model: Model | None,
    *,
    entry_id: int | None = None,
    warning: str | None = None,
    missing: str | None = None,
) -> JobView:
    """
    Args:
        job: the row.
        model: what the job made or measured.
        entry_id: of what stands with the certificate that it has checked.
        warning: why it can hardly succeed.
        missing: what it needs and no worker has.
    """
    failure = None
    if job.failure_code is not None:
        failure = FailureView(code=job.failure_code, message=job.failure_message or "")
    return _made(
        JobView,
        job,
        child_ids=[follower.id for follower in job.followers],
        shard=None if job.shard_index is None else job.shard_index + 1,
        shard_ids=[shard.id for shard in job.shards],
        progress=jobs.progress(job),
        failure=failure,
        model_id=None if model is None else model.id,
        weights_sha256=None if model is None else model.weights_sha256,
        entry_id=entry_id,
        warning=warning,
        missing=missing,
    )


def worker_view(status: WorkerStatus) -> WorkerView:
    return _made(WorkerView, status.row, state=status.state, job_id=None if status.job is None else status.job.id)


def attack_view(result: AttackResult) -> AttackView:
    return _made(AttackView, result)


def evaluation_view(evaluation: Evaluation) -> EvaluationView:
    robust = None
    if evaluation.robust_accuracy is not None and evaluation.robust_interval is not None:
        robust = AccuracyView(
            accuracy=evaluation.robust_accuracy,
            correct=evaluation.robust_correct,
            points=evaluation.num_points,
            interval=evaluation.robust_interval,
        )
    return _made(
        EvaluationView,
        evaluation,
        threat_model=evaluation.board,
        not_ranked=entries.why_not_ranked(evaluation),
        clean=AccuracyView(
            accuracy=evaluation.clean_accuracy,
            correct=evaluation.clean_correct,
            points=evaluation.num_points,
            interval=evaluation.clean_interval,
        ),
        robust=robust,
        attacks=[attack_view(result) for result in evaluation.attacks],
        unreliable=evaluation.is_unreliable,
    )


def model_view(model: Model) -> ModelView:
    return _made(ModelView, model)


def upload_view(upload: Upload) -> UploadView:
    return _made(UploadView, upload)


def audit_view(record: AuditRecord) -> AuditView:
    return _made(AuditView, record)


def _number(entry: Entry, accuracy: float | None) -> NumberView | None:
    return None if accuracy is None else NumberView(accuracy=accuracy, interval=entry.interval_of(accuracy))


def entry_view(ranked: entries.Ranked) -> EntryView:
    entry = ranked.entry
    return _made(
        EntryView,
        entry,
        threat_model=entry.board,
        model_id=entry.slug,
        rank=ranked.rank,
        rank_band=ranked.band,
        points=entry.num_points,
        clean=_number(entry, entry.clean_accuracy),
        robust=_number(entry, entry.robust_accuracy),
        autoattack=_number(entry, entry.autoattack_accuracy),
        external=_number(entry, entry.external_accuracy),
        reported=entry.reported_accuracy,
        withdrawn=entry.withdrawn_reason,
        unrankable=entry.unrankable_reason,
        weights_id=entry.model_id,
    )


def entry_detail(ranked: entries.Ranked, attacks: Sequence[ExternalAttack], next_cursor: int | None) -> EntryDetail:
    """With the external attacks that held."""
    return EntryDetail(
        **entry_view(ranked).model_dump(),
        external_attacks=[
            _made(ExternalAttackView, attack, broken=attack.broken or 0)
            for attack in attacks
            if attack.examples is not None
        ],
        next_cursor=next_cursor,
    )


def board_summary(board: entries.Board) -> BoardSummary:
    return _made(BoardSummary, board, threat_model=board.name)
