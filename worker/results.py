"""Saves a run's ending in one transaction: the job's end, its result, and everything that follows from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import jobs
from app.boards import results, robust_points
from app.boards.certificates import standing_points
from app.db.database import Database
from app.db.tables import FileKind
from app.evidence import external, reports, transfers
from app.jobs import job_files
from app.store import ArtifactStore, StoredFile
from gkl.answers import JobState
from gkl.outcome import (
    Ending,
    EvaluationOutcome,
    ExternalOutcome,
    Failed,
    ReportOutcome,
    ShardOutcome,
    TrainOutcome,
    TransferOutcome,
)
from gkl.spec import BaseTrainSpec, EvaluateSpec, ReportSpec
from worker.runner import CERTIFICATE_FILE

_T = TypeVar("_T")
_MERGED_MEANWHILE = "other examples against this entry were merged meanwhile"


def store_result(store: ArtifactStore, ending: Ending, directory: Path) -> StoredFile | None:
    """Store the file of a result; None if the result has no file.

    It is stored before the row that names it: a crash in between leaves a file without a row, never a row without a
    file.

    Raises:
        NoSpaceLeft: the store is full.
        StoreAway: the store is down.
    """
    if isinstance(ending, TrainOutcome):
        return store.put(directory / ending.weights)
    if isinstance(ending, TransferOutcome):
        return store_result(store, ending.merged, directory)
    if isinstance(ending, EvaluationOutcome | ExternalOutcome) and ending.certificate is not None:
        return store.put(directory / ending.certificate)
    return None


def read_robust_points(ending: Ending, directory: Path) -> robust_points.Points | None:
    """Which points the network withstands, by the certificate of a result in the run's directory; None without one."""
    if isinstance(ending, TransferOutcome):
        return read_robust_points(ending.merged, directory)
    if isinstance(ending, EvaluationOutcome | ExternalOutcome):
        name = ending.certificate
    else:
        name = CERTIFICATE_FILE if isinstance(ending, ReportOutcome) else None
    return None if name is None else standing_points(directory / name)


def save_result(
    database: Database,
    claim: jobs.Claim,
    ending: Ending,
    stored: StoredFile | None,
    *,
    points: robust_points.Points | None = None,
    give_up: Callable[[], bool],
) -> None:
    """End the job, and save its result and which points the network withstands.

    Args:
        database: the service's.
        claim: the attempt.
        ending: what the run reported.
        stored: the result's file in the store.
        points: from `read_robust_points`.
        give_up: whether to stop waiting for a database that is down.

    Raises:
        StaleAttempt: the job was given to another worker meanwhile; nothing of this run is saved.
    """

    def save(session: Session) -> None:
        _save(session, claim, ending, stored)
        if points is None:
            return
        if isinstance(claim.spec, ReportSpec):
            robust_points.record(session, claim.spec.certificate, points)
        elif stored is not None:
            robust_points.record(session, stored.sha256, points)

    _write(database, save, give_up)


def save_provisional(
    database: Database, claim: jobs.Claim, outcome: EvaluationOutcome, *, give_up: Callable[[], bool]
) -> None:
    """Put a running evaluation's upper bound on the board; the final verdict will replace it.

    Raises:
        StaleAttempt: the job was given to another worker meanwhile.
    """

    def save(session: Session) -> None:
        job = jobs.lock_claimed(session, claim)
        assert isinstance(claim.spec, EvaluateSpec)
        results.record_evaluation(session, job, claim.spec, outcome, is_provisional=True)

    _write(database, save, give_up)


def _write(database: Database, change: Callable[[Session], _T], give_up: Callable[[], bool]) -> _T:
    try:
        return database.write_patiently(change, give_up=give_up)
    except IntegrityError:
        # Another job that made or measured the same weights has written at the same moment; its model exists now.
        return database.write_patiently(change, give_up=give_up)


def _save(session: Session, claim: jobs.Claim, ending: Ending, stored: StoredFile | None) -> None:
    """End the job, and write everything that follows from its ending."""
    if isinstance(ending, Failed):
        jobs.fail(session, claim, ending.code, ending.message)
    elif isinstance(ending, TrainOutcome):
        assert stored is not None
        _save_training(session, claim, ending, stored)
    elif isinstance(ending, EvaluationOutcome):
        _save_evaluation(session, claim, ending, stored)
    elif isinstance(ending, ExternalOutcome):
        _save_external(session, claim, ending, stored)
    elif isinstance(ending, TransferOutcome):
        _save_transfer(session, claim, ending, stored)
    elif isinstance(ending, ReportOutcome):
        reports.record(session, jobs.succeed(session, claim), ending)
    elif isinstance(ending, ShardOutcome):
        # The shard's files are kept until the evaluation has merged all shards.
        jobs.succeed(session, claim)
    else:
        # Interrupted: the job is queued again, or cancelled if somebody asked for that.
        jobs.hand_back(session, claim)


def _save_training(session: Session, claim: jobs.Claim, outcome: TrainOutcome, stored: StoredFile) -> None:
    """Save the trained model and its weights, and queue the evaluation that the spec asks for."""
    spec = claim.spec
    assert isinstance(spec, BaseTrainSpec)
    was_to_be_cancelled = jobs.lock_claimed(session, claim).state is JobState.CANCELLING
    job = jobs.succeed(session, claim)
    job_files.add_file(session, job.id, FileKind.WEIGHTS, number=outcome.epochs, file=outcome.weights, stored=stored)
    results.record_model(session, job, spec, stored.sha256, teacher=outcome.teacher)
    jobs.release_students(session, job)
    follow_up = spec.follow_up(stored.sha256)
    # A request to cancel came too late for the training, but the evaluation can still be left out.
    if follow_up is not None and not was_to_be_cancelled:
        jobs.create(session, follow_up, submitter=job.submitter, priority=job.priority, parent_id=job.id)
    job_files.drop_resume_files(session, job.id)


def _save_evaluation(
    session: Session, claim: jobs.Claim, outcome: EvaluationOutcome, stored: StoredFile | None
) -> None:
    """Save the evaluation with its certificate and its place on the leaderboard."""
    assert isinstance(claim.spec, EvaluateSpec)
    job = jobs.succeed(session, claim)
    if stored is not None:
        assert outcome.certificate is not None
        job_files.add_file(session, job.id, FileKind.CERTIFICATE, number=0, file=outcome.certificate, stored=stored)
    certificate_sha256 = None if stored is None else stored.sha256
    results.record_evaluation(session, job, claim.spec, outcome, certificate_sha256=certificate_sha256)
    job_files.drop_resume_files(session, job.id)


def _save_external(session: Session, claim: jobs.Claim, outcome: ExternalOutcome, stored: StoredFile | None) -> None:
    """Lower the entry's accuracy by the broken points. If another check changed the entry's certificate meanwhile,
    queue the job again."""
    jobs.lock_claimed(session, claim)
    if not external.record(session, claim.job_id, outcome, stored):
        jobs.hand_back(session, claim, reason=_MERGED_MEANWHILE)
        return
    _end_check(session, claim, outcome, stored)


def _save_transfer(session: Session, claim: jobs.Claim, outcome: TransferOutcome, stored: StoredFile | None) -> None:
    """Store the counts, and lower the target's accuracy if surviving points were broken. If another check changed the
    target's certificate meanwhile, queue the job again."""
    if not transfers.record(session, jobs.lock_claimed(session, claim), outcome, stored):
        jobs.hand_back(session, claim, reason=_MERGED_MEANWHILE)
        return
    _end_check(session, claim, outcome.merged, stored)


def _end_check(session: Session, claim: jobs.Claim, outcome: ExternalOutcome, stored: StoredFile | None) -> None:
    """End the job, keep its certificate, and remove the examples."""
    job = jobs.succeed(session, claim)
    if stored is not None:
        assert outcome.certificate is not None
        job_files.add_file(session, job.id, FileKind.CERTIFICATE, number=0, file=outcome.certificate, stored=stored)
    job_files.forget_examples(session, job.id)
