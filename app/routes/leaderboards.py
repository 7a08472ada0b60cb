"""Leaderboards and the models on them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from app import leaderboard
from app.routes.jobs import MAX_ID
from app.schemas import BoardDetail, BoardSummary, EvaluationView, ModelDetail, ModelView, RowView
from app.service import ServiceDep

router = APIRouter(tags=["leaderboards"])

BoardPart = Annotated[str, Path(max_length=50, pattern=r"^[A-Za-z0-9._-]+$")]


@router.get("/leaderboards", summary="List the leaderboards")
def list_leaderboards(service: ServiceDep) -> list[BoardSummary]:
    with service.database.reading() as session:
        return [BoardSummary.of(board) for board in leaderboard.boards(session)]


@router.get("/leaderboards/{dataset}/{threat_model}", summary="Read a leaderboard")
def get_leaderboard(service: ServiceDep, dataset: BoardPart, threat_model: BoardPart) -> BoardDetail:
    """`threat_model` is the board's name: 'Linf' for the data set's usual budget, 'Linf-0.1' for another."""
    with service.database.reading() as session:
        board = leaderboard.board(session, dataset, threat_model)
        rows = [RowView.of(row) for row in leaderboard.rows(session, dataset, threat_model)]
        return BoardDetail(**BoardSummary.of(board).model_dump(), rows=rows)


@router.get("/models/{model_id}", summary="Look at a model and its evaluations")
def get_model(service: ServiceDep, model_id: Annotated[int, Path(ge=1, le=MAX_ID)]) -> ModelDetail:
    with service.database.reading() as session:
        model = leaderboard.model(session, model_id)
        evaluations = [EvaluationView.of(found) for found in leaderboard.evaluations_of(session, model_id)]
        return ModelDetail(**ModelView.of(model).model_dump(), evaluations=evaluations)
