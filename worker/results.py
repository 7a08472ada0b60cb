"""How a run's ending becomes rows: one transaction with the end of the job and all that follows from it."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import checkpoints, jobs, leaderboard
from app.artifacts import ArtifactStore, StoredFile
from app.database import Database
from app.tables import CheckpointKind
from gkl.outcome import Ending, EvaluationOutcome, Failed, TrainOutcome
from gkl.spec import EvaluateSpec, TrainSpec


def save_result(
    database: Database,
    store: ArtifactStore,
    claim: jobs.Claim,
    ending: Ending,
    directory: Path,
    *,
    patience_seconds: float,
) -> None:
    """End the job with what its run reported.

    Raises:
        StaleAttempt: the job was given to another worker meanwhile; nothing is kept of this run.
    """
    # The file is stored before the row that names it: a crash in between leaves a file without a row, never
    # the reverse.
    stored = store.put(directory / ending.weights) if isinstance(ending, TrainOutcome) else None

    def save(session: Session) -> list[str]:
        return _save(session, claim, ending, stored)

    try:
        unused = database.write_patiently(save, seconds=patience_seconds)
    except IntegrityError:
        # Another training that made the same weights ended in the same moment: now its model is there.
        unused = database.write_patiently(save, seconds=patience_seconds)
    for sha256 in unused:
        store.remove(sha256)


def _save(session: Session, claim: jobs.Claim, ending: Ending, stored: StoredFile | None) -> list[str]:
    """The end of the job with all that follows from it; returns files that are no longer needed."""
    if isinstance(ending, Failed):
        jobs.fail(session, claim, ending.code, ending.message)
    elif isinstance(ending, TrainOutcome):
        assert stored is not None
        return _save_training(session, claim, ending, stored)
    elif isinstance(ending, EvaluationOutcome):
        assert isinstance(claim.spec, EvaluateSpec)
        leaderboard.record_evaluation(session, jobs.succeed(session, claim), claim.spec, ending)
    else:
        # A job that was to be cancelled is then cancelled.
        jobs.hand_back(session, claim)
    return []


def _save_training(session: Session, claim: jobs.Claim, outcome: TrainOutcome, stored: StoredFile) -> list[str]:
    """Model, weights and the evaluation that is to follow; returns files that are no longer needed."""
    spec = claim.spec
    assert isinstance(spec, TrainSpec)
    job = jobs.succeed(session, claim)
    checkpoints.add(
        session,
        job.id,
        spec,
        CheckpointKind.WEIGHTS,
        epoch=outcome.epochs,
        file=outcome.weights,
        stored=stored,
    )
    leaderboard.record_model(session, job, spec, stored.sha256)
    follow_up = spec.follow_up(stored.sha256)
    if follow_up is not None:
        jobs.create(session, follow_up, parent_id=job.id)
    return checkpoints.forget_old_resume_points(session, job.id, keep=0)
