"""From a spec to a queued job, once per idempotency key."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.accounts import audit, quotas
from app.accounts.audit import Actor
from app.core.errors import Conflict
from app.db.database import Database, database_now, insert_into
from app.db.tables import ANONYMOUS, IdempotencyKey, Job, Submitter
from app.jobs import job_files, teachers
from app.jobs.outbox import enqueue
from app.jobs.state import add_event, get
from gkl.answers import JobKind, JobState
from gkl.spec import PUBLISHED_WEIGHTS, RUN_SPEC, AnySpec, DistillSpec, EvaluateSpec, SentSpec, named_weights

_ANONYMOUS_ACTOR = Actor(ANONYMOUS)


def create(
    session: Session,
    spec: AnySpec,
    *,
    submitter: str = ANONYMOUS,
    priority: int = 0,
    parent_id: int | None = None,
    warning: str | None = None,
) -> Job:
    """Queue a job with its wake-up message; an evaluation in shards also gets a job for each shard.

    Args:
        session: a transaction.
        spec: what to run.
        submitter: the name of the account that the job belongs to.
        priority: jobs with a higher one are claimed first.
        parent_id: the job that it follows.
        warning: a sentence to add to the job's first event.

    Raises:
        Unprocessable: the spec names weights or a teacher that are not stored, or that belong to another network.
    """
    teacher: Job | None = None
    if isinstance(spec, DistillSpec):
        spec, teacher = teachers.looked_up(session, spec)
    if isinstance(spec, EvaluateSpec | DistillSpec) and (named := named_weights(spec)) is not None:
        job_files.check_weights(session, named, within=job_files.field_of_weights(spec))
    quotas.register_submitter(session, submitter)
    terms: dict[str, Any] = {"submitter": submitter, "priority": priority}
    job = _add(session, spec, kind=JobKind(spec.kind), parent_id=parent_id, **terms)
    cause = f"sent by {submitter}" if parent_id is None else f"job {parent_id}'s weights are ready"
    cause += f"; {warning}" if warning else ""
    if teacher is not None:
        job.awaits_id = teacher.id
        _queue(session, job, due_at=None, reason=f"{cause}, waits for its teacher, job {teacher.id}")
        return job
    shards = spec.evaluation.shards if isinstance(spec, EvaluateSpec) else 1
    if shards == 1:
        _queue(session, job, due_at=job.created_at, reason=cause)
        return job
    _queue(session, job, due_at=None, reason=f"{cause}, waits for its {shards} shards")
    for index in range(shards):
        shard = _add(session, spec, kind=JobKind.SHARD, parent_id=job.id, shard_index=index, **terms)
        _queue(session, shard, due_at=shard.created_at, reason=f"a shard of job {job.id}")
    return job


def register_all_submitters(session: Session) -> None:
    """Register every submitter with a queued job, so that no claim skips one for ever."""
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
    named = named_weights(spec)
    return None if named is None or named.weights == PUBLISHED_WEIGHTS else named.weights


def _queue(session: Session, job: Job, *, due_at: datetime | None, reason: str) -> None:
    """Write the first event of a new job, and its wake-up message if it is due."""
    job.due_at = due_at
    session.flush()
    add_event(session, job.id, "state", {"state": JobState.QUEUED, "reason": reason})
    if due_at is not None:
        enqueue(session, job)


def submit(
    database: Database,
    spec: SentSpec,
    *,
    key: str | None,
    remember: timedelta,
    submitter: str = ANONYMOUS,
    priority: int = 0,
    actor: Actor = _ANONYMOUS_ACTOR,
    warning: str | None = None,
) -> Job:
    """Queue a job, once per actor and idempotency key. The job's first event contains the warning.

    Raises:
        Conflict: the key was used for another job before.
        TooMany: the submitter has reached a quota.
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
        # Another transaction used the same key at the same moment and committed first.
        return once()


def _create_by(session: Session, spec: SentSpec, actor: Actor, terms: dict[str, Any], warning: str | None) -> Job:
    quotas.check_room_for_job(session, terms["submitter"])
    job = create(session, spec, warning=warning, **terms)
    audit.record(session, actor, "job.create", f"job {job.id}", {"kind": job.kind} | terms)
    return job


def _create_once(
    session: Session,
    spec: SentSpec,
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
    # Two actors may choose the same key.
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


def _is_job_of(job: Job, spec: SentSpec, terms: dict[str, Any]) -> bool:
    """Whether the job has this spec: an earlier version computed the hash without fields that were added since."""
    try:
        earlier = RUN_SPEC.validate_python(job.spec)
    except ValidationError:
        return False
    return earlier == spec and all(getattr(job, name) == value for name, value in terms.items())
