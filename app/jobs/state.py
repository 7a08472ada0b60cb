"""The life of a job. The only place where a job's state changes.

    queued -> running -> succeeded | failed | cancelled
                 └-> cancelling -> cancelled
    running -> queued again, when its worker hands it back or is lost
    failed | cancelled -> queued again, when somebody retries it

A claim raises `attempt`, which fences: every later write of that worker carries it, and a write with an
older one, from a worker that lost the job meanwhile, is refused with `StaleAttempt`.

An evaluation in shards is a job that waits, queued and not due, for the shards' jobs. The transaction in which
the last of them succeeds makes it due; it then finds all its parts done and has only to put them together. Whoever
changes an evaluation and its shards takes the evaluation's row first.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from sqlalchemy import ColumnElement, CursorResult, Select, and_, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, selectinload

from app import audit, job_files, quotas, tokens
from app.audit import Actor
from app.database import DATABASE_AWAY, Database, database_now, insert_into
from app.entries import withdraw_bound
from app.errors import Conflict, NotFound, StaleAttempt, Unprocessable
from app.outbox import enqueue, withdraw
from app.tables import ANONYMOUS, FileKind, IdempotencyKey, Job, JobEvent, Submitter
from gkl.answers import JobKind, JobState
from gkl.errors import FailureCode
from gkl.outcome import Progress, Resources
from gkl.spec import (
    PUBLISHED_WEIGHTS,
    RUN_SPEC,
    AnySpec,
    EvaluateSpec,
    ExternalSpec,
    ReportSpec,
    TrainSpec,
    TransferSpec,
)

_log = logging.getLogger(__name__)

_NOBODY = Actor(ANONYMOUS)
_HELD = (JobState.RUNNING, JobState.CANCELLING)
_RETRIABLE = (JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class Claim:
    """A worker's right to run a job, until its lease ends."""

    job_id: int
    attempt: int
    spec_json: dict[str, Any]
    shard_index: int | None
    run_seconds: float
    """Time that earlier attempts took."""

    @cached_property
    def spec(self) -> AnySpec:
        """Read only after the claim is committed: a spec of another version must fail its job, not the claim.

        Raises:
            ValidationError: this version cannot run it.
        """
        return RUN_SPEC.validate_python(self.spec_json)


# --- made by the API ---------------------------------------------------------------------------------------------


def create(
    session: Session,
    spec: AnySpec,
    *,
    submitter: str = ANONYMOUS,
    priority: int = 0,
    parent_id: int | None = None,
    warning: str | None = None,
) -> Job:
    """Queue a job, together with the wake-up for it; an evaluation in shards with a job for each shard.

    Args:
        session: a transaction.
        spec: what to run.
        submitter: for whom.
        priority: higher ones are taken first.
        parent_id: the job that it follows.
        warning: what its first event is to say besides.

    Raises:
        Unprocessable: the spec names weights that are not here, or that are of another network.
    """
    if isinstance(spec, EvaluateSpec):
        job_files.check_weights(session, spec)
    quotas.know(session, submitter)
    terms: dict[str, Any] = {"submitter": submitter, "priority": priority}
    job = _add(session, spec, kind=JobKind(spec.kind), parent_id=parent_id, **terms)
    cause = f"sent by {submitter}" if parent_id is None else f"job {parent_id} has left the weights"
    cause += f"; {warning}" if warning else ""
    shards = spec.evaluation.shards if isinstance(spec, EvaluateSpec) else 1
    if shards == 1:
        _queue(session, job, due_at=job.created_at, reason=cause)
        return job
    _queue(session, job, due_at=None, reason=f"{cause}, waits for its {shards} shards")
    for index in range(shards):
        shard = _add(session, spec, kind=JobKind.SHARD, parent_id=job.id, shard_index=index, **terms)
        _queue(session, shard, due_at=shard.created_at, reason=f"a share of job {job.id}")
    return job


def know_all_submitters(session: Session) -> None:
    """Whoever waits for something: one who was forgotten while their job was being sent would wait for ever."""
    waiting = select(Job.submitter).where(Job.state == JobState.QUEUED, Job.submitter.not_in(select(Submitter.name)))
    session.execute(insert_into(session, Submitter).from_select(["name"], waiting.distinct()).on_conflict_do_nothing())


def _add(
    session: Session,
    spec: AnySpec,
    *,
    kind: JobKind,
    submitter: str,
    priority: int,
    parent_id: int | None,
    shard_index: int | None = None,
) -> Job:
    job = Job(
        kind=kind,
        name=spec.name,
        spec=spec.model_dump(mode="json"),
        submitter=submitter,
        priority=priority,
        parent_id=parent_id,
        weights_sha256=_weights_of(spec),
        shard_index=shard_index,
        created_at=database_now(session),
    )
    session.add(job)
    session.flush()
    return job


def _weights_of(spec: AnySpec) -> str | None:
    return None if isinstance(spec, TrainSpec | ReportSpec) or spec.weights == PUBLISHED_WEIGHTS else spec.weights


def _queue(session: Session, job: Job, *, due_at: datetime | None, reason: str) -> None:
    """What a new job begins with."""
    job.due_at = due_at
    session.flush()
    _add_event(session, job.id, "state", {"state": JobState.QUEUED, "reason": reason})
    if due_at is not None:
        enqueue(session, job)


def submit(
    database: Database,
    spec: TrainSpec | EvaluateSpec,
    *,
    key: str | None,
    remember: timedelta,
    submitter: str = ANONYMOUS,
    priority: int = 0,
    actor: Actor = _NOBODY,
    warning: str | None = None,
) -> Job:
    """Queue a job, once per idempotency key, which is the actor's own. Its first event says the warning too.

    Raises:
        Conflict: the key came with another job before.
        TooMany: the submitter has used up what they may.
        Unprocessable: see `create`.
    """

    terms: dict[str, Any] = {"submitter": submitter, "priority": priority}

    def once() -> Job:
        with database.writing() as session:
            if key is None:
                return _create_by(session, spec, actor, terms, warning)
            return _create_once(session, spec, actor, terms, key=key, remember=remember, warning=warning)

    try:
        return once()
    except IntegrityError:
        # The same key at the same moment in another transaction, which has committed first.
        return once()


def _create_by(
    session: Session, spec: TrainSpec | EvaluateSpec, actor: Actor, terms: dict[str, Any], warning: str | None
) -> Job:
    quotas.check_room_for_job(session, terms["submitter"])
    job = create(session, spec, warning=warning, **terms)
    audit.record(session, actor, "job.create", f"job {job.id}", {"kind": job.kind} | terms)
    return job


def _create_once(
    session: Session,
    spec: TrainSpec | EvaluateSpec,
    actor: Actor,
    terms: dict[str, Any],
    *,
    key: str,
    remember: timedelta,
    warning: str | None,
) -> Job:
    asked = {"spec": spec.model_dump(mode="json")} | terms
    body_sha256 = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    now = database_now(session)
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < now - remember))
    # Two people may choose the same one.
    stored_key = hashlib.sha256(f"{actor.name}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()
    known = session.get(IdempotencyKey, stored_key)
    if known is not None:
        job = get(session, known.job_id)
        if known.body_sha256 != body_sha256 and not _is_job_of(job, spec, terms):
            raise Conflict(
                f"the Idempotency-Key {key!r} was used for another job, {known.job_id}; send a new key for a new job"
            )
        return job
    job = _create_by(session, spec, actor, terms, warning)
    session.add(IdempotencyKey(key=stored_key, body_sha256=body_sha256, job_id=job.id, created_at=now))
    session.flush()
    return job


def _is_job_of(job: Job, spec: TrainSpec | EvaluateSpec, terms: dict[str, Any]) -> bool:
    """Whether the same was asked for: an earlier version made the hash without the fields that a spec has since."""
    try:
        earlier = RUN_SPEC.validate_python(job.spec)
    except ValidationError:
        return False
    return earlier == spec and all(getattr(job, name) == value for name, value in terms.items())


def get(session: Session, job_id: int) -> Job:
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job


def locked(session: Session, job_id: int) -> Job:
    """A job whose row this transaction keeps to itself."""
    job = get(session, job_id)
    _lock(session, job)
    return job


def request_cancel(session: Session, job_id: int) -> Job:
    """Cancel a queued job at once; ask the worker of a running one to stop. Twice is as good as once.

    A shard goes with its whole evaluation. A training that has ended well is past cancelling, the evaluation that
    followed it may not be: that one is then meant.

    Raises:
        NotFound: there is no such job.
        Conflict: the job has already ended otherwise, and nothing that follows from it is left to cancel.
    """
    job = get(session, job_id)
    if job.kind is JobKind.SHARD:
        assert job.parent_id is not None
        request_cancel(session, job.parent_id)
        return job
    _lock(session, job)
    if job.state.is_final:
        unfinished = [follower for follower in job.followers if not follower.state.is_final]
        for follower in unfinished:
            request_cancel(session, follower.id)
        if not unfinished and job.state is not JobState.CANCELLED:
            raise Conflict(f"job {job_id} has already {job.state}; only a queued or running job can be cancelled")
        return job
    _cancel(session, job, "cancelled by request")
    for shard in job.shards:
        _lock(session, shard)
        _cancel(session, shard, f"job {job.id} was cancelled")
    return job


def _cancel(session: Session, job: Job, reason: str) -> None:
    """Of a locked job, whatever its state."""
    if job.state is JobState.QUEUED:
        _move(session, job, JobState.CANCELLED, reason=reason)
    elif job.state is JobState.RUNNING:
        _move(session, job, JobState.CANCELLING, reason=f"{reason}; its worker is asked to stop")


def retry(session: Session, job_id: int) -> Job:
    """Queue a failed or cancelled job again; it goes on from what its last attempt saved.

    A shard goes with its whole evaluation, of which the shards that succeeded keep their result.

    Raises:
        NotFound: there is no such job.
        Conflict: the job has not ended, or has ended well, or is a shard still stopping.
        Unprocessable: its weights are not here any more.
    """
    job = get(session, job_id)
    if job.kind is JobKind.SHARD:
        assert job.parent_id is not None
        retry(session, job.parent_id)
        return job
    _lock(session, job)
    if job.state not in _RETRIABLE:
        raise Conflict(f"job {job_id} is {job.state}; only a failed or cancelled job can be retried")
    try:
        spec = RUN_SPEC.validate_python(job.spec)
    except ValidationError as error:
        raise Unprocessable(f"this version cannot run the spec of job {job_id}; send a new job") from error
    if isinstance(spec, EvaluateSpec):
        job_files.check_weights(session, spec)
    if isinstance(spec, ExternalSpec | TransferSpec):
        job_files.check_sent(session, job_id, FileKind.EXAMPLES)
    if isinstance(spec, ReportSpec):
        job_files.check_sent(session, job_id, FileKind.CERTIFICATE)
    undone = []
    for shard in job.shards:
        _lock(session, shard)
        if shard.state is JobState.SUCCEEDED and job_files.has_parts(session, shard.id):
            continue
        if not shard.state.is_final:
            raise Conflict(
                f"job {shard.id}, a shard of job {job_id}, is still {shard.state}; retry when it has stopped"
            )
        undone.append(shard)
    reason = "retried" if not undone else f"retried, waits for {len(undone)} of its {len(job.shards)} shards"
    _again(session, job, reason=reason, due_at=None if undone else database_now(session))
    for shard in undone:
        _again(session, shard, reason="retried", due_at=database_now(session))
    return job


def _again(session: Session, job: Job, *, reason: str, due_at: datetime | None) -> None:
    _move(
        session,
        job,
        JobState.QUEUED,
        reason=reason,
        due_at=due_at,
        finished_at=None,
        failure_code=None,
        failure_message=None,
        progress=None,
        worker=None,
        lost_leases=0,
        # Somebody who asks again gives it the whole time again.
        run_seconds=0.0,
    )
    if due_at is not None:
        enqueue(session, job)


# --- made by a worker --------------------------------------------------------------------------------------------


def claim(session: Session, *, worker: str, lease: timedelta) -> Claim | None:
    """Take the queued job that is due. None if there is none.

    Highest priority first; among equals the submitter with the fewest jobs on workers, then the one who was served
    longest ago; of that submitter's jobs the oldest.
    """
    now = database_now(session)
    in_turn = _submitters_in_turn(session, now)
    limits = tokens.limits_of(session, in_turn)
    for submitter in in_turn:
        if submitter in limits and not quotas.may_run_another(session, submitter, limits[submitter], now):
            continue
        # Another worker's candidate is passed over instead of waited for. SQLite has one writer anyway.
        job = session.scalars(_next_of(submitter, now).with_for_update(skip_locked=True)).first()
        if job is None:
            continue
        _note_turn(session, submitter, now)
        _move(
            session,
            job,
            JobState.RUNNING,
            attempt=Job.attempt + 1,
            worker=worker,
            lease_expires_at=now + lease,
            claimed_at=now,
            started_at=job.started_at or now,
            progress=None,
        )
        withdraw(session, job)
        return Claim(job.id, job.attempt, job.spec, job.shard_index, job.run_seconds)
    return None


def _note_turn(session: Session, submitter: str, now: datetime) -> None:
    # Left out while another claim of theirs holds the row: a worker frozen there must not keep others waiting.
    row = select(Submitter).where(Submitter.name == submitter).with_for_update(skip_locked=True)
    found = session.scalars(row).first()
    if found is not None:
        found.last_claimed_at = now


def _submitters_in_turn(session: Session, now: datetime) -> list[str]:
    """Those with a job that is due. One look into an index for each submitter, however long the queue."""
    first = _next_of(Submitter.name, now).with_only_columns(Job.id).correlate(Submitter).scalar_subquery()
    waiting = [row for row in session.execute(select(Submitter.name, Submitter.last_claimed_at, first)) if row[2]]
    # Put in order here: joined to the jobs, the planner would rather read them all than look up these few.
    priority = dict(session.execute(select(Job.id, Job.priority).where(Job.id.in_([row[2] for row in waiting]))).all())
    held = dict(
        session.execute(select(Job.submitter, func.count()).where(Job.state.in_(_HELD)).group_by(Job.submitter)).all()
    )
    never = datetime.min.replace(tzinfo=UTC)
    waiting.sort(key=lambda row: (-priority[row[2]], held.get(row[0], 0), row[1] or never, row[2]))
    return [name for name, _, _ in waiting]


def _next_of(submitter: Any, now: datetime) -> Select[Job]:
    return (
        select(Job)
        .where(Job.state == JobState.QUEUED, Job.submitter == submitter, Job.due_at <= now)
        .order_by(Job.priority.desc(), Job.id)
        .limit(1)
    )


def heartbeat(
    session: Session,
    claim: Claim,
    *,
    lease: timedelta,
    progress: Progress | None = None,
    resources: Resources | None = None,
) -> JobState:
    """Renew the lease and note where the run is; returns the state, in which a wish to cancel is seen."""
    values: dict[str, Any] = {"lease_expires_at": database_now(session) + lease}
    if progress is not None:
        values["progress"] = progress.model_dump(mode="json")
    if resources is not None:
        values["resources"] = resources.model_dump(mode="json")
    _write_held(session, claim, values)
    return get(session, claim.job_id).state


def record(session: Session, claim: Claim, event: BaseModel) -> None:
    """Keep an event of the run."""
    # Taking the job's row first puts its events in order: their ids rise in the order of their commits.
    hold(session, claim)
    data = event.model_dump(mode="json")
    _add_event(session, claim.job_id, data.pop("type"), data)


def hold(session: Session, claim: Claim) -> Job:
    """Keep the job's row to this transaction, for a write about the job in another table.

    Raises:
        StaleAttempt: the claim no longer holds the job.
    """
    _write_held(session, claim, {})
    return get(session, claim.job_id)


def succeed(session: Session, claim: Claim) -> Job:
    """End a job well. Its result belongs into the same transaction, after this call."""
    job = _hold_with_family(session, claim)
    _move(session, job, JobState.SUCCEEDED)
    if job.kind is JobKind.SHARD:
        _go_on_after_shards(session, job)
    return job


def _go_on_after_shards(session: Session, shard: Job) -> None:
    """The last shard to succeed makes its evaluation due. Their order is that in which they take its row."""
    evaluation = shard.parent
    assert evaluation is not None
    undone = session.scalar(
        select(func.count()).where(
            Job.parent_id == evaluation.id, Job.kind == JobKind.SHARD, Job.state != JobState.SUCCEEDED
        )
    )
    if undone == 0 and evaluation.state is JobState.QUEUED:
        evaluation.due_at = database_now(session)
        session.flush()
        _add_event(
            session, evaluation.id, "state", {"state": JobState.QUEUED, "reason": "all its shards are done: merge them"}
        )
        enqueue(session, evaluation)


def fail(session: Session, claim: Claim, code: FailureCode, message: str) -> Job:
    job = _hold_with_family(session, claim)
    _fail(session, job, code, message)
    return job


def _fail(session: Session, job: Job, code: FailureCode, message: str) -> None:
    """End a locked job, and with a shard the evaluation that can no longer be completed."""
    _move(session, job, JobState.FAILED, failure_code=code, failure_message=message)
    evaluation = job.parent
    if job.kind is not JobKind.SHARD or evaluation is None or evaluation.state is not JobState.QUEUED:
        return
    assert job.shard_index is not None
    siblings = evaluation.shards
    _move(
        session,
        evaluation,
        JobState.FAILED,
        failure_code=code,
        failure_message=f"shard {job.shard_index + 1} of {len(siblings)}, job {job.id}, failed: {message}",
    )
    for sibling in siblings:
        if sibling.id != job.id:
            _lock(session, sibling)
            _cancel(session, sibling, f"job {job.id}, another shard, failed")


def cancelled(session: Session, claim: Claim) -> Job:
    """End a job that was asked to stop and did."""
    job = _hold_with_family(session, claim)
    _move(session, job, JobState.CANCELLED, reason=f"{job.worker} has stopped the run")
    return job


def hand_back(session: Session, claim: Claim, *, reason: str | None = None) -> Job:
    """Queue a job again, at no cost, and by default because its worker is going away; it goes on from what it saved."""
    job = _hold_with_family(session, claim)
    if job.state is JobState.CANCELLING:
        return cancelled(session, claim)
    reason = reason or f"{job.worker} is stopping and handed it back"
    _requeue(session, job, reason=reason, due_at=database_now(session))
    return job


# --- made by the relay -------------------------------------------------------------------------------------------


def reap(database: Database, *, max_lost_leases: int, backoff: timedelta) -> list[Job]:
    """Take jobs from workers that were not heard of for a lease, each in a transaction of its own; returns those jobs.

    After the first loss a job waits for `backoff`, after each further one twice as long.
    """
    with database.reading() as session:
        expired = session.scalars(select(Job.id).where(_is_expired(database_now(session))).order_by(Job.id)).all()
    reaped: list[Job] = []
    for job_id in expired:
        try:
            with database.writing() as session:
                job = _take_away(session, job_id, max_lost_leases, backoff)
        except DATABASE_AWAY as error:
            # Those who live renew their leases first, when it is back.
            _log.warning("job %d could not be taken from its lost worker (%s)", job_id, error.orig)
            return reaped
        except Exception:  # noqa: BLE001 - logged; one job that cannot be taken must not keep the others
            _log.exception("job %d could not be taken from its lost worker; trying again later", job_id)
            continue
        if job is not None:
            reaped.append(job)
    return reaped


def _is_expired(now: datetime) -> ColumnElement[bool]:
    return and_(Job.state.in_(_HELD), Job.lease_expires_at < now)


def _take_away(session: Session, job_id: int, max_lost_leases: int, backoff: timedelta) -> Job | None:
    job = get(session, job_id)
    if job.kind is JobKind.SHARD:
        assert job.parent is not None
        _lock(session, job.parent)
    now = database_now(session)
    # Whoever holds the row is alive, or is found next time.
    is_ours = select(Job.id).where(Job.id == job_id, _is_expired(now)).with_for_update(skip_locked=True)
    if session.scalar(is_ours) is None:
        return None
    session.refresh(job)
    # What was saved since it was claimed is not lost with it: a run that comes on is not given up.
    if job.claimed_at is not None and job_files.saved_since(session, job_id, job.claimed_at):
        job.lost_leases = 0
    job.lost_leases += 1
    session.flush()
    lost = f"{job.worker} was not heard of for a lease"
    if job.state is JobState.CANCELLING:
        _move(session, job, JobState.CANCELLED, reason=lost)
    elif job.lost_leases < max_lost_leases:
        _requeue(session, job, reason=lost, due_at=now + backoff * 2 ** (job.lost_leases - 1))
    else:
        _fail(
            session,
            job,
            FailureCode.WORKER_LOST,
            f"its worker was lost {job.lost_leases} times, last {job.worker}, and nothing was saved in between; look "
            "at that host's memory and worker log, then retry the job: it goes on from what it saved",
        )
    return job


# --- the one way to change a state -------------------------------------------------------------------------------


def _move(session: Session, job: Job, new: JobState, *, reason: str | None = None, **values: Any) -> None:
    """Compare-and-set on (state, attempt), with the event that tells of it. The row is locked already.

    Raises:
        StaleAttempt: somebody was faster, which the lock rules out on both databases.
    """
    old, now = job.state, database_now(session)
    if old in _HELD and new not in _HELD:
        # A lost worker's time counts until its lease ended: after that, it held nothing.
        until = min(now, job.lease_expires_at) if job.lease_expires_at is not None else now
        spent = max(0.0, (until - job.claimed_at).total_seconds()) if job.claimed_at is not None else 0.0
        if job.claimed_at is not None:
            quotas.note_worker_time(session, job.submitter, job.claimed_at, until)
        values = {"lease_expires_at": None, "claimed_at": None, "run_seconds": job.run_seconds + spent} | values
    if new.is_final:
        values = {"finished_at": now, "due_at": None} | values
    changed = _execute(
        session,
        update(Job).where(Job.id == job.id, Job.state == old, Job.attempt == job.attempt).values(state=new, **values),
    )
    if not changed:
        raise StaleAttempt(f"job {job.id} is no longer {old} in attempt {job.attempt}")
    session.refresh(job)
    if new in (JobState.FAILED, JobState.CANCELLED):
        # An upper bound stands on a board only while its evaluation can end.
        withdraw_bound(session, job.id)
    data: dict[str, Any] = {"state": new}
    if reason is not None:
        data["reason"] = reason
    if new is JobState.RUNNING:
        data |= {"attempt": job.attempt, "worker": job.worker}
    if new is JobState.FAILED:
        data |= {"code": job.failure_code, "message": job.failure_message}
    _add_event(session, job.id, "state", data)


def _requeue(session: Session, job: Job, *, reason: str, due_at: datetime) -> None:
    _move(session, job, JobState.QUEUED, reason=reason, worker=None, due_at=due_at)
    enqueue(session, job)


def _lock(session: Session, job: Job) -> None:
    """Keep the row to this transaction, and read what it is now."""
    session.refresh(job, with_for_update=True)


def _hold_with_family(session: Session, claim: Claim) -> Job:
    """`hold`, and for a shard its evaluation first: whoever needs both takes them in this order."""
    job = get(session, claim.job_id)
    if job.kind is JobKind.SHARD:
        assert job.parent is not None
        _lock(session, job.parent)
    return hold(session, claim)


def _write_held(session: Session, claim: Claim, values: dict[str, Any]) -> None:
    """Change, and so lock, a row that this claim still holds.

    Raises:
        StaleAttempt: it does not.
    """
    held = _execute(
        session,
        update(Job)
        .where(Job.id == claim.job_id, Job.attempt == claim.attempt, Job.state.in_(_HELD))
        .values(attempt=claim.attempt, **values),
    )
    if not held:
        raise StaleAttempt(f"job {claim.job_id} is no longer held by attempt {claim.attempt}")
    session.expire_all()


def _execute(session: Session, statement: Any) -> bool:
    return cast("CursorResult[Any]", session.execute(statement)).rowcount == 1


def _add_event(session: Session, job_id: int, kind: str, data: dict[str, Any]) -> None:
    session.add(JobEvent(job_id=job_id, type=kind, data=data, created_at=database_now(session)))
    session.flush()


# --- to look at --------------------------------------------------------------------------------------------------


def events_after(session: Session, job_id: int, event_id: int, *, limit: int = 1000) -> list[JobEvent]:
    """Events of a job with a larger id, in order."""
    return list(
        session.scalars(
            select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > event_id).order_by(JobEvent.id).limit(limit)
        )
    )


def page(
    session: Session,
    *,
    state: JobState | None = None,
    kind: JobKind | None = None,
    before_id: int | None = None,
    limit: int = 50,
) -> list[Job]:
    """Jobs, newest first, older than `before_id`."""
    query = select(Job).options(selectinload(Job.children)).order_by(Job.id.desc()).limit(limit)
    if state is not None:
        query = query.where(Job.state == state)
    if kind is not None:
        query = query.where(Job.kind == kind)
    if before_id is not None:
        query = query.where(Job.id < before_id)
    return list(session.scalars(query))


def count_due(session: Session) -> int:
    """Jobs that wait for nothing but a worker."""
    return (
        session.scalar(select(func.count()).where(Job.state == JobState.QUEUED, Job.due_at <= database_now(session)))
        or 0
    )


def progress(job: Job) -> dict[str, Any] | None:
    """Where a job is, as a `gkl.outcome.Progress`; of an evaluation that waits for its shards, where they are."""
    if job.state is not JobState.QUEUED or not job.shards or job.due_at is not None:
        return job.progress
    done = [shard.state is JobState.SUCCEEDED for shard in job.shards]
    parts = [
        1.0 if is_done else (shard.progress or {}).get("fraction", 0.0)
        for shard, is_done in zip(job.shards, done, strict=True)
    ]
    return Progress(
        stage="shards", fraction=sum(parts) / len(parts), detail=f"{sum(done)} of {len(done)} are done"
    ).model_dump(mode="json")


def seconds_on_workers(job: Job, now: datetime) -> float | None:
    """How long the job has been on workers since it was sent or last retried; None if it never was."""
    if job.started_at is None:
        return None
    return job.run_seconds + ((now - job.claimed_at).total_seconds() if job.claimed_at is not None else 0.0)
