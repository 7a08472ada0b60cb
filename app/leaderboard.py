"""From a measured outcome to a ranked row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, selectinload

from app.database import database_now
from app.errors import NotFound
from app.tables import AttackResult, Checkpoint, CheckpointKind, Evaluation, Job, Model
from gkl.catalog import DATASETS
from gkl.outcome import EvaluationOutcome
from gkl.spec import EvaluateSpec, TrainSpec, board_name, format_epsilon

LOSS_TITLES = {"trades": "TRADES", "dkl": "DKL", "ikl": "IKL", "gkl": "GKL"}


@dataclass(frozen=True)
class Row:
    """A place on a board."""

    rank: int
    evaluation: Evaluation

    @property
    def model(self) -> Model:
        return self.evaluation.model


@dataclass(frozen=True)
class Board:
    """A ranking of models under one threat model on one data set."""

    dataset: str
    name: str
    norm: str
    epsilon: float
    num_models: int

    @property
    def title(self) -> str:
        return f"{DATASETS[self.dataset].title}, {self.norm} {format_epsilon(self.epsilon)}"


def record_model(session: Session, job: Job, spec: TrainSpec, weights_sha256: str) -> Model:
    """Note what a training made. The same weights again, from the same spec and seed, are the same model."""
    known = session.scalars(select(Model).where(Model.weights_sha256 == weights_sha256)).first()
    if known is not None:
        return known
    model = Model(
        name=spec.name,
        dataset=spec.dataset,
        architecture=spec.architecture,
        loss=spec.objective.loss,
        weights_sha256=weights_sha256,
        train_job_id=job.id,
        created_at=database_now(session),
    )
    session.add(model)
    session.flush()
    return model


def record_evaluation(session: Session, job: Job, spec: EvaluateSpec, outcome: EvaluationOutcome) -> Evaluation:
    """Note what an evaluation measured, as the job's one result."""
    threat_model = spec.evaluation.threat_model
    evaluation = Evaluation(
        model=session.scalars(select(Model).where(Model.weights_sha256 == spec.weights)).one(),
        job_id=job.id,
        board=board_name(spec.dataset, threat_model),
        norm=threat_model.norm,
        epsilon=threat_model.epsilon,
        protocol=spec.evaluation.protocol,
        num_points=outcome.num_points,
        is_complete=outcome.num_points == DATASETS[spec.dataset].num_test,
        clean_correct=outcome.clean_correct,
        robust_correct=outcome.robust_correct,
        seconds=outcome.seconds,
        manifest=outcome.manifest.model_dump(mode="json"),
        created_at=database_now(session),
        attacks=[
            AttackResult(
                position=position,
                attack=attack.attack,
                points=attack.points,
                broken=attack.broken,
                seconds=attack.seconds,
            )
            for position, attack in enumerate(outcome.attacks)
        ],
    )
    session.add(evaluation)
    session.flush()
    return evaluation


def boards(session: Session) -> list[Board]:
    """The boards that have a row, by data set and name."""
    found = session.execute(
        select(
            Model.dataset,
            Evaluation.board,
            Evaluation.norm,
            func.min(Evaluation.epsilon),
            func.count(Model.id.distinct()),
        )
        .join(Evaluation.model)
        .where(Evaluation.is_complete)
        .group_by(Model.dataset, Evaluation.board, Evaluation.norm)
        .order_by(Model.dataset, Evaluation.board)
    )
    return [Board(*row) for row in found]


def board(session: Session, dataset: str, name: str) -> Board:
    """
    Raises:
        NotFound: nothing was ranked there yet.
    """
    for candidate in boards(session):
        if (candidate.dataset, candidate.name) == (dataset, name):
            return candidate
    raise NotFound(f"there is no leaderboard {dataset}/{name}; /api/v1/leaderboards lists those there are")


def rows(session: Session, dataset: str, name: str) -> list[Row]:
    """A board in its order: robust accuracy, then clean accuracy, then who was first.

    A model that was evaluated more than once stands with its lowest robust accuracy: an adversarial example
    that was found once exists, whatever a later run with another seed found.
    """
    lowest = (
        select(
            Evaluation.id,
            func.row_number()
            .over(partition_by=Evaluation.model_id, order_by=(Evaluation.robust_correct, Evaluation.id))
            .label("place"),
        )
        .join(Evaluation.model)
        .where(Evaluation.board == name, Evaluation.is_complete, Model.dataset == dataset)
        .subquery()
    )
    ranked = (
        _evaluations()
        .join(lowest, lowest.c.id == Evaluation.id)
        .where(lowest.c.place == 1)
        .order_by(Evaluation.robust_correct.desc(), Evaluation.clean_correct.desc(), Evaluation.id)
    )
    return [Row(rank, evaluation) for rank, evaluation in enumerate(session.scalars(ranked), start=1)]


def rank_of(session: Session, evaluation: Evaluation) -> int | None:
    """The rank of the model on the evaluation's board; None if it is not ranked there."""
    for row in rows(session, evaluation.model.dataset, evaluation.board):
        if row.model.id == evaluation.model_id:
            return row.rank
    return None


def model(session: Session, model_id: int) -> Model:
    found = session.get(Model, model_id)
    if found is None:
        raise NotFound(f"there is no model {model_id}")
    return found


def evaluations_of(session: Session, model_id: int) -> list[Evaluation]:
    """All measurements of a model, newest first."""
    return list(session.scalars(_evaluations().where(Evaluation.model_id == model_id).order_by(Evaluation.id.desc())))


def evaluation_of_job(session: Session, job_id: int) -> Evaluation | None:
    return session.scalars(_evaluations().where(Evaluation.job_id == job_id)).first()


def models_of_jobs(session: Session, job_ids: Sequence[int]) -> dict[int, Model]:
    """The model that each job made, made again or measured; without the jobs that have no result."""
    made = (
        select(Checkpoint.job_id, Model)
        .join(Model, Model.weights_sha256 == Checkpoint.sha256)
        .where(Checkpoint.job_id.in_(job_ids), Checkpoint.kind == CheckpointKind.WEIGHTS)
    )
    measured = select(Evaluation.job_id, Model).join(Evaluation.model).where(Evaluation.job_id.in_(job_ids))
    return {job_id: found for query in (made, measured) for job_id, found in session.execute(query)}


def _evaluations() -> Select[Evaluation]:
    return select(Evaluation).options(selectinload(Evaluation.attacks), selectinload(Evaluation.model))
