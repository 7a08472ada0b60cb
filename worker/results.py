"""How a run's ending becomes rows: one transaction with the end of the job and all that follows from it."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.orm import Session

from app import checkpoints, jobs, leaderboard
from app.artifacts import ArtifactStore, StoredFile
from app.database import Database
from app.tables import CheckpointKind, JobState
from gkl.outcome import Ending, EvaluationOutcome, Failed, TrainOutcome
from gkl.spec import EvaluateSpec, TrainSpec


def save_result(database: Database, store: ArtifactStore, claim: jobs.Claim, ending: Ending, directory: Path) -> None:
    """End the job with what its run reported.

    Raises:
        StaleAttempt: the job was given to another worker meanwhile; nothing is kept of this run.
    """
    # The file is stored before the row that names it: a crash in between leaves a file without a row, never
    # the reverse.
    stored = store.put(directory / ending.weights) if isinstance(ending, TrainOutcome) else None
    unused: list[str] = []
    with database.writing() as session:
        if isinstance(ending, Failed):
            jobs.fail(session, claim, ending.code, ending.message)
        elif isinstance(ending, TrainOutcome):
            assert stored is not None
            unused = _save_training(session, claim, ending, stored)
        elif isinstance(ending, EvaluationOutcome):
            assert isinstance(claim.spec, EvaluateSpec)
            leaderboard.record_evaluation(session, jobs.succeed(session, claim), claim.spec, ending)
        elif jobs.get(session, claim.job_id).state is JobState.CANCELLING:
            jobs.cancelled(session, claim)
        else:
            jobs.hand_back(session, claim)
    for sha256 in unused:
        store.remove(sha256)


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
