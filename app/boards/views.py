"""Boards, entries, models and evaluations as the API returns them."""

from __future__ import annotations

from collections.abc import Sequence

from app.boards import placing, ranking
from app.boards.teachers import Teacher, teacher_view
from app.core.views import made
from app.db.tables import AttackResult, Entry, Evaluation, ExternalAttack, Model
from gkl.answers import (
    AccuracyView,
    AttackView,
    BoardSummary,
    EntryDetail,
    EntryView,
    EvaluationView,
    ExternalAttackView,
    ModelView,
    NumberView,
)


def attack_view(result: AttackResult) -> AttackView:
    return made(AttackView, result)


def evaluation_view(evaluation: Evaluation) -> EvaluationView:
    robust = None
    if evaluation.robust_accuracy is not None and evaluation.robust_interval is not None:
        robust = AccuracyView(
            accuracy=evaluation.robust_accuracy,
            correct=evaluation.robust_correct,
            points=evaluation.num_points,
            interval=evaluation.robust_interval,
        )
    return made(
        EvaluationView,
        evaluation,
        threat_model=evaluation.board,
        not_ranked=placing.why_not_ranked(evaluation),
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


def model_view(model: Model, teacher: Teacher | None) -> ModelView:
    return made(ModelView, model, teacher=teacher_view(teacher))


def _number(entry: Entry, accuracy: float | None) -> NumberView | None:
    return None if accuracy is None else NumberView(accuracy=accuracy, interval=entry.interval_of(accuracy))


def entry_view(ranked: ranking.Ranked) -> EntryView:
    entry = ranked.entry
    return made(
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
        teacher=teacher_view(ranked.teacher),
    )


def entry_detail(ranked: ranking.Ranked, attacks: Sequence[ExternalAttack], next_cursor: int | None) -> EntryDetail:
    """An entry with the external attacks that were confirmed."""
    return EntryDetail(
        **entry_view(ranked).model_dump(),
        external_attacks=[
            made(ExternalAttackView, attack, broken=attack.broken or 0)
            for attack in attacks
            if attack.examples is not None
        ],
        next_cursor=next_cursor,
    )


def board_summary(board: ranking.Board) -> BoardSummary:
    return made(BoardSummary, board, threat_model=board.name)
