"""How long each kind of file and row is kept. `app.maintenance.cleanup` applies these rules, and `gklbench storage`
lists what they are about to remove.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, SQLColumnExpression, and_, case, delete, exists, or_, select
from sqlalchemy.orm import Session, aliased

from app.accounts import audit
from app.accounts.principals import Principal
from app.core.errors import Conflict
from app.core.settings import Settings
from app.db.database import database_now
from app.db.tables import (
    NEEDED_BY_A_RETRY,
    UNFINISHED,
    Entry,
    Evaluation,
    ExternalAttack,
    FileKind,
    Job,
    JobEvent,
    JobFile,
    Model,
    Report,
    Transfer,
)
from app.jobs.state import get, get_locked
from gkl.answers import JobKind, JobState

_UNSUCCESSFUL = (JobState.FAILED, JobState.CANCELLED)
_ENDED = (*_UNSUCCESSFUL, JobState.SUCCEEDED)
_AT_ONCE = 1000
_Parent = aliased(Job)


@dataclass(frozen=True)
class FileRule:
    """Files of jobs that are removed some days after a moment."""

    title: str
    which: ColumnElement[bool]
    """A condition on `JobFile` joined to its `Job`, and to the parent of a shard as `_Parent`."""
    since: SQLColumnExpression[Any]
    """The moment from which the days count; null while it has not come."""
    days: Callable[[Settings], float]
    setting: str

    def files(self, *columns: Any) -> Select[Any]:
        return (
            select(*columns)
            .join(Job, Job.id == JobFile.job_id)
            .outerjoin(_Parent, and_(_Parent.id == Job.parent_id, Job.kind == JobKind.SHARD))
            .where(self.which)
        )

    def past(self, session: Session, settings: Settings) -> Select[Any]:
        """A query for the ids of the files whose time is over."""
        before = database_now(session) - timedelta(days=self.days(settings))
        return self.files(JobFile.id).where(self.since < before)


def _has_no_rank() -> ColumnElement[bool]:
    """Whether a training's weights have no entry on a board, and no unfinished job uses them."""
    entry = exists().where(Entry.model_id == Model.id, Model.weights_sha256 == JobFile.sha256)
    measured = aliased(Job)
    unfinished = exists().where(measured.weights_sha256 == JobFile.sha256, measured.state.in_(UNFINISHED))
    return and_(~entry, ~unfinished)


def _is_superseded() -> ColumnElement[bool]:
    """Whether a certificate was replaced: one with merged examples by a later one of the same entry, a report's by the
    same submitter's later report on the same network.
    """
    own, later = aliased(ExternalAttack), aliased(ExternalAttack)
    merged_later = exists().where(
        own.job_id == JobFile.job_id,
        later.entry_id == own.entry_id,
        later.certificate_sha256.is_not(None),
        later.robust_correct < own.robust_correct,
    )
    replaced = and_(
        Job.kind == JobKind.REPORT,
        Job.state == JobState.SUCCEEDED,
        ~exists().where(Report.certificate_sha256 == JobFile.sha256),
    )
    return or_(merged_later, replaced)


# A shard counts as unsuccessful only when its whole evaluation is: until then its parts are needed.
_BADLY = or_(and_(Job.kind != JobKind.SHARD, Job.state.in_(_UNSUCCESSFUL)), _Parent.state.in_(_UNSUCCESSFUL))
_ENDED_AT = case((Job.kind == JobKind.SHARD, _Parent.finished_at), else_=Job.finished_at)

FILE_RULES = (
    FileRule(
        "what failed and cancelled jobs saved",
        and_(or_(JobFile.kind.in_(NEEDED_BY_A_RETRY), Job.kind == JobKind.REPORT), _BADLY),
        _ENDED_AT,
        lambda settings: settings.checkpoint_retention_days,
        "GKLBENCH_CHECKPOINT_RETENTION_DAYS",
    ),
    FileRule(
        "trained weights without a board entry",
        and_(JobFile.kind == FileKind.WEIGHTS, _has_no_rank()),
        Job.finished_at,
        lambda settings: settings.weights_retention_days,
        "GKLBENCH_WEIGHTS_RETENTION_DAYS",
    ),
    FileRule(
        "certificates that later ones have replaced",
        and_(JobFile.kind == FileKind.CERTIFICATE, _is_superseded()),
        Job.finished_at,
        lambda settings: settings.certificate_retention_days,
        "GKLBENCH_CERTIFICATE_RETENTION_DAYS",
    ),
)


def forget_files(session: Session, settings: Settings) -> None:
    for rule in FILE_RULES:
        past = rule.past(session, settings)
        # Locked first, then checked again: a job that was just created may need one of them.
        # At most as many as a statement may name; the next round removes the others.
        locked = session.scalars(past.limit(_AT_ONCE).with_for_update(of=JobFile, skip_locked=True)).all()
        session.execute(delete(JobFile).where(JobFile.id.in_(locked), JobFile.id.in_(past)))


# --- events ------------------------------------------------------------------------------------------------------


def forget_events(session: Session, settings: Settings) -> None:
    """Remove old events: of failed and cancelled jobs all but the state changes after `log_retention_days`; of every
    ended job all events after `event_retention_days`."""
    now = database_now(session)
    badly = select(Job.id).where(
        Job.state.in_(_UNSUCCESSFUL), Job.finished_at < now - timedelta(days=settings.log_retention_days)
    )
    session.execute(delete(JobEvent).where(JobEvent.type != "state", JobEvent.job_id.in_(badly)))
    long_ago = select(Job.id).where(
        Job.state.in_(_ENDED), Job.finished_at < now - timedelta(days=settings.event_retention_days)
    )
    session.execute(delete(JobEvent).where(JobEvent.job_id.in_(long_ago)))


# --- jobs --------------------------------------------------------------------------------------------------------


def without_result() -> ColumnElement[bool]:
    """A condition on `Job`: it has ended, and no visible result and no other job depends on it."""
    child, weights = aliased(Job), aliased(JobFile)
    model = exists().where(Model.train_job_id == Job.id)
    evaluation = exists().where(Evaluation.job_id == Job.id)
    attack = exists().where(ExternalAttack.job_id == Job.id, ExternalAttack.examples.is_not(None))
    report = exists().where(Report.job_id == Job.id)
    newer = aliased(Transfer)
    measured_again = exists().where(
        newer.source_id == Transfer.source_id,
        newer.target_id == Transfer.target_id,
        newer.id > Transfer.id,
        newer.outcome.is_not(None),
    )
    transfer = exists().where(Transfer.job_id == Job.id, Transfer.outcome.is_not(None), ~measured_again)
    kept = exists().where(weights.job_id == Job.id, weights.kind == FileKind.WEIGHTS)
    child_or_parent = or_(
        exists().where(child.parent_id == Job.id),
        exists().where(child.id == Job.parent_id, child.state.in_(UNFINISHED)),
    )
    return and_(Job.state.in_(_ENDED), ~model, ~evaluation, ~attack, ~report, ~transfer, ~kept, ~child_or_parent)


def forget_jobs(session: Session, settings: Settings) -> int:
    """Remove old jobs without a result, with their events, logs and files. Returns how many. A job that another one
    followed is removed in a later round."""
    before = database_now(session) - timedelta(days=settings.job_retention_days)
    _forget_models(session)
    old = session.scalars(select(Job.id).where(Job.finished_at < before, without_result()).limit(_AT_ONCE)).all()
    _forget(session, old)
    return len(old)


def _forget(session: Session, job_ids: Sequence[int]) -> None:
    # These rows hold unverified examples, and transfers that were not measured or were measured again since.
    session.execute(delete(ExternalAttack).where(ExternalAttack.job_id.in_(job_ids)))
    session.execute(delete(Transfer).where(Transfer.job_id.in_(job_ids)))
    session.execute(delete(Job).where(Job.id.in_(job_ids)))


def _forget_models(session: Session) -> None:
    """Remove models of trainings whose weights are gone and were never evaluated: they are of no use."""
    weights = exists().where(JobFile.sha256 == Model.weights_sha256, JobFile.kind == FileKind.WEIGHTS)
    measured = exists().where(Evaluation.model_id == Model.id)
    session.execute(delete(Model).where(Model.train_job_id.is_not(None), ~weights, ~measured))


def remove_own_job(session: Session, sender: Principal, job_id: int) -> None:
    """Remove a job on behalf of a user, and write the audit record. Call `metric_sums.count_new_events` first.

    Raises:
        Forbidden: the job is another user's, and the sender is not an admin.
        NotFound, Conflict: see `remove_job`.
    """
    sender.check_owns(get(session, job_id).submitter, f"job {job_id}")
    audit.record(session, sender.actor, "job.remove", f"job {job_id}")
    remove_job(session, get_locked(session, job_id))


def remove_job(session: Session, job: Job) -> None:
    """Remove a job with its shards, its files, and a model without an evaluation. The caller has locked the job's row.

    Raises:
        Conflict: it has not ended, or a result or another job depends on it.
    """
    if not job.state.is_final:
        raise Conflict(f"job {job.id} is {job.state}; cancel it first")
    if job.kind is JobKind.SHARD:
        raise Conflict(f"job {job.id} is a shard of job {job.parent_id}; remove that one")
    if job.followers:
        raise Conflict(f"job {job.followers[0].id} followed job {job.id}; remove that one first")
    remove_weights_of(session, job)
    _forget_models(session)
    for shard in job.shards:
        session.execute(delete(Job).where(Job.id == shard.id))
    session.expire_all()
    if session.scalar(select(Job.id).where(Job.id == job.id, without_result())) is None:
        raise Conflict(f"job {job.id} cannot be removed: it has a result; an admin can withdraw its entry")
    _forget(session, [job.id])


def remove_weights_of(session: Session, job: Job) -> None:
    """Remove the weights that a training produced.

    Raises:
        Conflict: a board entry or an unfinished job needs them.
    """
    weights = select(JobFile.id).where(JobFile.job_id == job.id, JobFile.kind == FileKind.WEIGHTS)
    # The lock waits for a job that is just being created with them.
    if session.scalar(weights.with_for_update()) is None:
        return
    if session.scalar(weights.where(_has_no_rank())) is None:
        raise Conflict("these weights cannot be removed: a job or an entry needs them")
    session.execute(delete(JobFile).where(JobFile.id.in_(weights)))
