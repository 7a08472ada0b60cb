"""From a measured outcome to a ranked row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, and_, func, select
from sqlalchemy.orm import Session, selectinload

from app.database import database_now
from app.errors import NotFound
from app.tables import AttackResult, Evaluation, FileKind, Job, JobFile, Model
from gkl.catalog import DATASETS
from gkl.outcome import EvaluationOutcome
from gkl.spec import RANKED_PROTOCOLS, EvaluateSpec, TrainSpec, board_name, format_epsilon

LOSS_TITLES = {"trades": "TRADES", "dkl": "DKL", "ikl": "IKL", "gkl": "GKL"}


@dataclass(frozen=True)
class Row:
    """A place on a board; without a rank while it is provisional."""

    rank: int | None
    evaluation: Evaluation

    @property
    def model(self) -> Model:
        return self.evaluation.model


@dataclass(frozen=True)
class Board:
    """A ranking of models under one threat model on one data set."""

    dataset: str
    name: str
    norm: str | None
    epsilon: float | None
    num_models: int

    @property
    def title(self) -> str:
        title = DATASETS[self.dataset].title
        if self.norm is None or self.epsilon is None:
            return f"{title}, common corruptions"
        return f"{title}, {self.norm} {format_epsilon(self.epsilon)}"


def record_model(session: Session, job: Job, spec: TrainSpec, weights_sha256: str) -> Model:
    """Note what a training made. The same weights again, from the same spec and seed, are the same model."""
    return _model(session, spec, weights_sha256, loss=spec.objective.loss, train_job_id=job.id)


def record_evaluation(
    session: Session,
    job: Job,
    spec: EvaluateSpec,
    outcome: EvaluationOutcome,
    *,
    certificate_sha256: str | None = None,
    is_provisional: bool = False,
) -> Evaluation:
    """Note what an evaluation measured, as the job's one result; a final one takes the provisional one's place."""
    threat_model = spec.evaluation.threat_model
    found = session.scalars(_evaluations().where(Evaluation.job_id == job.id, Evaluation.is_provisional)).first()
    model, now = _model(session, spec, outcome.manifest.weights_sha256), database_now(session)
    evaluation = found or Evaluation(job_id=job.id)
    evaluation.model_id = model.id
    evaluation.board = board_name(spec.dataset, spec.evaluation)
    evaluation.norm = None if threat_model is None else threat_model.norm
    evaluation.epsilon = None if threat_model is None else threat_model.epsilon
    evaluation.protocol = spec.evaluation.protocol
    evaluation.num_points = outcome.num_points
    evaluation.is_complete = outcome.num_points == DATASETS[spec.dataset].num_test
    evaluation.is_provisional = is_provisional
    evaluation.clean_correct = outcome.clean_correct
    evaluation.robust_correct = outcome.robust_correct
    evaluation.robust_accuracy = outcome.robust_accuracy
    evaluation.mean_corruption_error = outcome.mean_corruption_error
    evaluation.corruptions = [each.model_dump(mode="json") for each in outcome.corruptions]
    evaluation.flags = [flag.model_dump(mode="json") for flag in outcome.flags]
    evaluation.certificate_sha256 = certificate_sha256
    evaluation.seconds = outcome.seconds
    evaluation.manifest = outcome.manifest.model_dump(mode="json")
    evaluation.created_at = now
    evaluation.attacks = [
        AttackResult(
            position=position,
            attack=attack.attack,
            points=attack.points,
            broken=attack.broken,
            seconds=attack.seconds,
            discarded=attack.discarded,
            loss=attack.loss,
            targets=attack.targets,
        )
        for position, attack in enumerate(outcome.attacks)
    ]
    session.add(evaluation)
    session.flush()
    return evaluation


def _model(
    session: Session,
    spec: TrainSpec | EvaluateSpec,
    weights_sha256: str,
    *,
    loss: str | None = None,
    train_job_id: int | None = None,
) -> Model:
    known = session.scalars(select(Model).where(Model.weights_sha256 == weights_sha256)).first()
    if known is not None:
        return known
    model = Model(
        name=spec.name,
        dataset=spec.dataset,
        architecture=spec.architecture,
        loss=loss,
        weights_sha256=weights_sha256,
        train_job_id=train_job_id,
        created_at=database_now(session),
    )
    session.add(model)
    session.flush()
    return model


# All test images, by a protocol no weaker than the standard one.
_IS_RANKED = and_(Evaluation.is_complete, Evaluation.protocol.in_(RANKED_PROTOCOLS))


def why_not_ranked(evaluation: Evaluation) -> str | None:
    """In words; None if it is, or will be when it is final."""
    if evaluation.protocol == "clean":
        return "clean images only"
    if evaluation.protocol not in RANKED_PROTOCOLS:
        return f"protocol {evaluation.protocol}: not ranked"
    if not evaluation.is_complete:
        return f"{evaluation.num_points} of {DATASETS[evaluation.model.dataset].num_test} points: not ranked"
    return None


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
        .where(_IS_RANKED)
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
    that was found once exists, whatever a later run with another seed found. Only a model without a final verdict
    stands with a provisional one, in its place by that upper bound, without a rank.
    """
    best_known = (
        select(
            Evaluation.id,
            func.row_number()
            .over(
                partition_by=Evaluation.model_id,
                order_by=(Evaluation.is_provisional, Evaluation.robust_accuracy, Evaluation.id),
            )
            .label("place"),
        )
        .join(Evaluation.model)
        .where(Evaluation.board == name, _IS_RANKED, Model.dataset == dataset)
        .subquery()
    )
    ordered = session.scalars(
        _evaluations()
        .join(best_known, best_known.c.id == Evaluation.id)
        .where(best_known.c.place == 1)
        .order_by(Evaluation.robust_accuracy.desc(), Evaluation.clean_correct.desc(), Evaluation.id)
    )
    ranks = itertools.count(1)
    return [Row(None if found.is_provisional else next(ranks), found) for found in ordered]


def leader(session: Session, dataset: str, name: str) -> Row:
    """The first of a board; a provisional one only where there is no final one."""
    found = rows(session, dataset, name)
    return next((row for row in found if row.rank == 1), found[0])


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


def evaluation(session: Session, evaluation_id: int) -> Evaluation:
    found = session.scalars(_evaluations().where(Evaluation.id == evaluation_id)).first()
    if found is None:
        raise NotFound(f"there is no evaluation {evaluation_id}")
    return found


def evaluations_of(session: Session, model_id: int) -> list[Evaluation]:
    """All measurements of a model, newest first."""
    return list(session.scalars(_evaluations().where(Evaluation.model_id == model_id).order_by(Evaluation.id.desc())))


def evaluation_of_job(session: Session, job_id: int) -> Evaluation | None:
    return session.scalars(_evaluations().where(Evaluation.job_id == job_id)).first()


def models_of_jobs(session: Session, job_ids: Sequence[int]) -> dict[int, Model]:
    """The model that each job made, made again or measured; without the jobs that have no result."""
    made = (
        select(JobFile.job_id, Model)
        .join(Model, Model.weights_sha256 == JobFile.sha256)
        .where(JobFile.job_id.in_(job_ids), JobFile.kind == FileKind.WEIGHTS)
    )
    measured = select(Evaluation.job_id, Model).join(Evaluation.model).where(Evaluation.job_id.in_(job_ids))
    return {job_id: found for query in (made, measured) for job_id, found in session.execute(query)}


def _evaluations() -> Select[Evaluation]:
    return select(Evaluation).options(selectinload(Evaluation.attacks), selectinload(Evaluation.model))
