"""Files that train jobs left: points to resume from while they run, weights when they are done."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import StoredFile
from app.database import database_now
from app.errors import Unprocessable
from app.tables import Checkpoint, CheckpointKind
from gkl.spec import EvaluateSpec, TrainSpec

_KEEP = 2


def add(
    session: Session,
    job_id: int,
    spec: TrainSpec,
    kind: CheckpointKind,
    *,
    epoch: int,
    file: str,
    stored: StoredFile,
) -> None:
    session.add(
        Checkpoint(
            job_id=job_id,
            kind=kind,
            epoch=epoch,
            file=file,
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
            dataset=spec.dataset,
            architecture=spec.architecture,
            created_at=database_now(session),
        )
    )
    session.flush()


def resume_points(session: Session, job_id: int) -> list[Checkpoint]:
    """Newest first."""
    return list(
        session.scalars(
            select(Checkpoint)
            .where(Checkpoint.job_id == job_id, Checkpoint.kind == CheckpointKind.RESUME)
            .order_by(Checkpoint.epoch.desc())
        )
    )


def forget_old_resume_points(session: Session, job_id: int, *, keep: int = _KEEP) -> list[str]:
    """Drop all but the newest; returns the hashes of files that nothing refers to any more."""
    return _forget(session, resume_points(session, job_id)[keep:])


def forget_resume_points_from(session: Session, job_id: int, epoch: int) -> list[str]:
    """Drop those of this epoch and later ones, which a run that fell back to an earlier one makes again."""
    return _forget(session, [point for point in resume_points(session, job_id) if point.epoch >= epoch])


def _forget(session: Session, points: list[Checkpoint]) -> list[str]:
    for point in points:
        session.delete(point)
    session.flush()
    hashes = {point.sha256 for point in points}
    still_used = set(session.scalars(select(Checkpoint.sha256).where(Checkpoint.sha256.in_(hashes))))
    return sorted(hashes - still_used)


def check_weights(session: Session, spec: EvaluateSpec) -> None:
    """
    Raises:
        Unprocessable: the spec names weights that are not here, or that are of another network.
    """
    stored = session.scalars(
        select(Checkpoint).where(Checkpoint.sha256 == spec.weights, Checkpoint.kind == CheckpointKind.WEIGHTS)
    ).first()
    if stored is None:
        raise Unprocessable(
            f"weights: no weights with sha256 {spec.weights} are stored here; "
            "take the value of weights_sha256 from a finished train job"
        )
    for field in ("architecture", "dataset"):
        made_with, asked = getattr(stored, field), getattr(spec, field)
        if asked != made_with:
            raise Unprocessable(f"{field}: these weights were trained with {field} {made_with!r}, not {asked!r}")
