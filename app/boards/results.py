"""Storing measured results: the model, the evaluation, the entry on a board."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, and_, select
from sqlalchemy.orm import Session, selectinload

from app.boards import placing
from app.boards.names import board_name
from app.boards.teachers import note_new_model
from app.core.errors import NotFound
from app.db.database import database_now
from app.db.tables import AttackResult, Evaluation, FileKind, Job, JobFile, Model
from gkl.catalog import DATASETS
from gkl.outcome import EvaluationOutcome, TeacherOutcome
from gkl.spec import BaseTrainSpec, EvaluateSpec

# The weights of a loss's own terms, beside the cross-entropy to the labels.
_TERMS = {
    *("kl_weight", "ce_weight", "wmse_weight", "target_weight", "non_target_weight", "teacher_weight"),
    *("adversarial_weight", "natural_weight"),
}


def record_model(
    session: Session, job: Job, spec: BaseTrainSpec, weights_sha256: str, *, teacher: TeacherOutcome | None = None
) -> Model:
    """Store the model that a training produced, with the teacher it learned from, if any. The same weights, spec and
    seed again are the same model."""
    model = _model(session, spec, weights_sha256, "", loss=_loss_of(spec), train_job_id=job.id)
    if teacher is not None and model.teacher_sha256 is None:
        model.teacher_architecture, model.teacher_sha256 = teacher.architecture, teacher.weights_sha256
        model.teacher_key, model.teacher_accuracy = teacher.weights_key or "", teacher.clean_accuracy
        session.flush()
    return model


def _loss_of(spec: BaseTrainSpec) -> str | None:
    """The name of the loss; None without any of its terms: then it is plain cross-entropy, whatever its name."""
    weights = spec.objective.model_dump(include=_TERMS)
    return spec.loss if any(weights.values()) or not weights else None


def record_evaluation(
    session: Session,
    job: Job,
    spec: EvaluateSpec,
    outcome: EvaluationOutcome,
    *,
    certificate_sha256: str | None = None,
    is_provisional: bool = False,
) -> Evaluation:
    """Store an evaluation as the job's one result; a final result replaces a provisional one."""
    threat_model = spec.evaluation.threat_model
    found = session.scalars(_evaluations().where(Evaluation.job_id == job.id, Evaluation.is_provisional)).first()
    manifest, now = outcome.manifest, database_now(session)
    model = _model(session, spec, manifest.weights_sha256, manifest.weights_key or "")
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
    evaluation.checks = [check.model_dump(mode="json") for check in outcome.checks]
    evaluation.checks_seed = outcome.checks_seed
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
    placing.place_on_board(session, model, evaluation.board)
    return evaluation


def _model(
    session: Session,
    spec: BaseTrainSpec | EvaluateSpec,
    weights_sha256: str,
    weights_key: str,
    *,
    loss: str | None = None,
    train_job_id: int | None = None,
) -> Model:
    same = {"weights_sha256": weights_sha256, "weights_key": weights_key, "architecture": spec.architecture}
    known = session.scalars(select(Model).filter_by(**same)).first()
    if known is not None:
        return known
    model = Model(
        name=spec.name,
        dataset=spec.dataset,
        architecture=spec.architecture,
        loss=loss,
        weights_sha256=weights_sha256,
        weights_key=weights_key,
        train_job_id=train_job_id,
        created_at=database_now(session),
    )
    session.add(model)
    session.flush()
    note_new_model(session, model)
    return model


def model(session: Session, model_id: int) -> Model:
    found = session.get(Model, model_id)
    if found is None:
        raise NotFound(f"there is no model {model_id}")
    return found


def newest_models(session: Session, *, limit: int) -> list[Model]:
    return list(session.scalars(select(Model).order_by(Model.id.desc()).limit(limit)))


def models_of_file(session: Session, weights_sha256: str) -> list[Model]:
    """The known networks of a file, oldest first."""
    return list(session.scalars(select(Model).where(Model.weights_sha256 == weights_sha256).order_by(Model.id)))


def evaluation(session: Session, evaluation_id: int) -> Evaluation:
    found = session.scalars(_evaluations().where(Evaluation.id == evaluation_id)).first()
    if found is None:
        raise NotFound(f"there is no evaluation {evaluation_id}")
    return found


def evaluations_of(
    session: Session, model_id: int, *, before_id: int | None = None, limit: int | None = None
) -> list[Evaluation]:
    """Evaluations of a model older than `before_id`, newest first."""
    query = _evaluations().where(Evaluation.model_id == model_id).order_by(Evaluation.id.desc()).limit(limit)
    if before_id is not None:
        query = query.where(Evaluation.id < before_id)
    return list(session.scalars(query))


def evaluation_of_job(session: Session, job_id: int) -> Evaluation | None:
    return session.scalars(_evaluations().where(Evaluation.job_id == job_id)).first()


def models_of_jobs(session: Session, job_ids: Sequence[int]) -> dict[int, Model]:
    """The model that each job trained or evaluated; jobs without a result are left out."""
    made = (
        select(JobFile.job_id, Model)
        .join(Model, and_(Model.weights_sha256 == JobFile.sha256, Model.weights_key == ""))
        .where(JobFile.job_id.in_(job_ids), JobFile.kind == FileKind.WEIGHTS)
    )
    measured = select(Evaluation.job_id, Model).join(Evaluation.model).where(Evaluation.job_id.in_(job_ids))
    return {job_id: found for query in (made, measured) for job_id, found in session.execute(query)}


def _evaluations() -> Select[Evaluation]:
    return select(Evaluation).options(selectinload(Evaluation.attacks), selectinload(Evaluation.model))
