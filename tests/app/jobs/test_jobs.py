"""The life of a job, on both databases."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app import jobs
from app.core.errors import Conflict, NotFound, StaleAttempt, Unprocessable
from app.db.database import Database, database_now
from app.db.tables import FileKind, IdempotencyKey, Job, OutboxMessage
from app.jobs import job_files
from app.jobs.outbox import publish_pending, requeue_unclaimed
from app.store import StoredFile
from gkl.answers import JobState
from gkl.errors import FailureCode
from gkl.outcome import AttackFinished, AttackOutcome, Progress
from gkl.recipes.adversarial import digits, digits_trades
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel

LEASE = timedelta(seconds=90)
DAY = timedelta(hours=24)


def send(database: Database, *, submitter: str = "somebody", priority: int = 0) -> int:
    with database.writing() as session:
        return jobs.create(session, digits(), submitter=submitter, priority=priority).id


def claim(database: Database, worker: str = "w") -> jobs.Claim | None:
    with database.writing() as session:
        return jobs.claim(session, worker=worker, lease=LEASE)


def take(database: Database, worker: str = "w") -> jobs.Claim:
    claimed = claim(database, worker)
    assert claimed is not None
    return claimed


def look(database: Database, job_id: int) -> Job:
    with database.reading() as session:
        return jobs.get(session, job_id)


def history(database: Database, job_id: int) -> list[str]:
    with database.reading() as session:
        return [e.data["state"] for e in jobs.events_after(session, job_id, 0) if e.type == "state"]


def expire(database: Database, job_id: int) -> None:
    with database.writing() as session:
        past = database_now(session) - timedelta(seconds=1)
        session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=past))


def reap(database: Database, max_lost_leases: int = 3) -> None:
    jobs.reap(database, max_lost_leases=max_lost_leases, backoff=timedelta(0))


def owed(database: Database) -> list[int]:
    """Job ids of the messages that the workers are owed."""
    sent: list[int] = []
    publish_pending(database, sent.append)
    return sent


def test_a_job_is_claimed_run_and_ended(database: Database) -> None:
    job_id = send(database)
    claimed = take(database, "gpu-1")
    assert (claimed.job_id, claimed.attempt, claimed.spec) == (job_id, 1, digits())
    progress = Progress(stage="training", fraction=0.5, seconds_left=3.0)
    with database.writing() as session:
        assert jobs.heartbeat(session, claimed, lease=LEASE, progress=progress) is JobState.RUNNING
        jobs.record_event(
            session, claimed, AttackFinished(outcome=AttackOutcome(attack="FAB-T", points=9, broken=1, seconds=2.0))
        )
    job = look(database, job_id)
    assert job.worker == "gpu-1"
    assert job.progress == progress.model_dump()
    with database.writing() as session:
        jobs.succeed(session, claimed)
    job = look(database, job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.finished_at is not None
    assert job.lease_expires_at is None
    assert history(database, job_id) == ["queued", "running", "succeeded"]


def test_claims_go_by_priority_then_age(database: Database) -> None:
    first, second, urgent = send(database), send(database), send(database, priority=5)
    assert [take(database).job_id for _ in range(3)] == [urgent, first, second]
    assert claim(database) is None


def test_claims_are_shared_between_submitters(database: Database) -> None:
    """One worker at a time goes round; whoever holds most waits; priority comes before both."""
    crowd = [send(database, submitter="crowd") for _ in range(4)]
    one = [send(database, submitter="one") for _ in range(2)]
    assert [end(database) for _ in range(5)] == [crowd[0], one[0], crowd[1], one[1], crowd[2]]

    late = [send(database, submitter="late") for _ in range(3)]
    held = [take(database).job_id for _ in range(2)]
    assert held == [late[0], crowd[3]], "late was never served"
    crowd += [send(database, submitter="crowd"), send(database, submitter="crowd", priority=1)]
    assert take(database).job_id == crowd[-1], "priority before fairness"
    assert take(database).job_id == late[1], "the crowd holds two, late holds one"


def end(database: Database) -> int:
    """Take a job and end it."""
    claimed = take(database)
    with database.writing() as session:
        jobs.succeed(session, claimed)
    return claimed.job_id


def test_a_job_is_not_taken_before_it_is_due(database: Database) -> None:
    early, late = send(database), send(database)
    with database.writing() as session:
        soon = database_now(session) + timedelta(seconds=60)
        session.execute(update(Job).where(Job.id == early).values(due_at=soon))
    assert take(database).job_id == late
    assert claim(database) is None


def test_two_workers_never_get_the_same_job(database: Database) -> None:
    sent = {send(database) for _ in range(8)}
    taken: list[int] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        while (claimed := claim(database)) is not None:
            taken.append(claimed.job_id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(sent)


def test_a_stale_attempt_can_write_nothing(database: Database) -> None:
    job_id = send(database)
    old = take(database, "frozen")
    expire(database, job_id)
    reap(database)
    new = take(database, "awake")
    assert new.attempt == old.attempt + 1
    outcome = AttackFinished(outcome=AttackOutcome(attack="Square", points=1, broken=1, seconds=1.0))
    writes = [
        lambda session: jobs.heartbeat(session, old, lease=LEASE),
        lambda session: jobs.record_event(session, old, outcome),
        lambda session: jobs.lock_claimed(session, old),
        lambda session: jobs.succeed(session, old),
        lambda session: jobs.fail(session, old, FailureCode.INTERNAL, "no"),
        lambda session: jobs.end_cancelled(session, old),
        lambda session: jobs.hand_back(session, old),
    ]
    for write in writes:
        with pytest.raises(StaleAttempt), database.writing() as session:
            write(session)
    assert look(database, job_id).worker == "awake"
    assert history(database, job_id) == ["queued", "running", "queued", "running"]
    with database.writing() as session:
        jobs.succeed(session, new)


def test_an_ended_job_can_not_end_again(database: Database) -> None:
    send(database)
    claimed = take(database)
    with database.writing() as session:
        jobs.fail(session, claimed, FailureCode.TIMED_OUT, "it took too long")
    with pytest.raises(StaleAttempt), database.writing() as session:
        jobs.succeed(session, claimed)


def test_lost_workers_cost_three_attempts(database: Database) -> None:
    job_id = send(database)
    for _ in range(3):
        take(database, "gone")
        expire(database, job_id)
        reap(database)
    job = look(database, job_id)
    assert (job.state, job.failure_code) == (JobState.FAILED, FailureCode.WORKER_LOST)
    assert job.failure_message is not None
    assert "gone" in job.failure_message
    assert history(database, job_id) == ["queued", "running"] + ["queued", "running"] * 2 + ["failed"]


def test_what_was_saved_is_no_loss(database: Database) -> None:
    """Three losses in a row end a job, not three in a run of days that comes on."""
    job_id = send(database)
    for number in range(5):
        claimed = take(database, "gone")
        with database.writing() as session:
            jobs.lock_claimed(session, claimed)
            job_files.add_file(
                session, job_id, FileKind.RESUME, number=number, file="c", stored=StoredFile(f"{number:064x}", 1)
            )
        expire(database, job_id)
        reap(database)
        assert (look(database, job_id).state, look(database, job_id).lost_leases) == (JobState.QUEUED, 1)
    for _ in range(2):
        take(database, "gone")
        expire(database, job_id)
        reap(database)
    assert look(database, job_id).failure_code == FailureCode.WORKER_LOST


def test_a_lost_job_waits_longer_each_time(database: Database) -> None:
    job_id = send(database)
    owed(database)
    waits = []
    for _ in range(2):
        with database.writing() as session:
            session.execute(update(Job).values(due_at=database_now(session)))
        take(database, "gone")
        expire(database, job_id)
        (lost,) = jobs.reap(database, max_lost_leases=3, backoff=timedelta(hours=10))
        assert lost.due_at is not None
        with database.reading() as session:
            waits.append((lost.due_at - database_now(session)) / timedelta(hours=1))
        assert claim(database) is None
        assert owed(database) == [], "nobody is woken for it yet"
    assert waits == pytest.approx([10, 20], abs=0.1)


def test_time_on_workers_adds_up_over_attempts(database: Database) -> None:
    # Hours, beside which the seconds that this test itself takes do not count.
    hour, test_takes = 3600, 60
    job_id = send(database)

    def began(hours_ago: float) -> None:
        with database.writing() as session:
            session.execute(update(Job).values(claimed_at=database_now(session) - timedelta(hours=hours_ago)))

    first = take(database)
    began(100)
    with database.writing() as session:
        jobs.hand_back(session, first)
    second = take(database)
    assert second.run_seconds == pytest.approx(100 * hour, abs=test_takes)
    began(50)
    with database.writing() as session:
        seconds = jobs.seconds_on_workers(jobs.get(session, job_id), database_now(session))
        assert seconds == pytest.approx(150 * hour, abs=test_takes)
        # A lost worker's time ends with its lease, whenever that is noticed.
        ended = database_now(session) - timedelta(hours=20)
        session.execute(update(Job).values(lease_expires_at=ended))
    reap(database)
    assert look(database, job_id).run_seconds == pytest.approx(130 * hour, abs=test_takes)
    third = take(database)
    with database.writing() as session:
        jobs.fail(session, third, FailureCode.TIMED_OUT, "too long")
        jobs.retry(session, job_id)
    assert take(database).run_seconds == 0


def test_a_failed_or_cancelled_job_is_retried(database: Database) -> None:
    job_id = send(database)
    owed(database)
    with pytest.raises(Conflict, match="is queued"), database.writing() as session:
        jobs.retry(session, job_id)
    first = take(database)
    with database.writing() as session:
        jobs.fail(session, first, FailureCode.OUT_OF_MEMORY, "too much")
    with database.writing() as session:
        jobs.retry(session, job_id)
    job = look(database, job_id)
    assert (job.state, job.failure_code, job.finished_at, job.lost_leases) == (JobState.QUEUED, None, None, 0)
    assert owed(database) == [job_id]
    second = take(database)
    assert second.attempt == 2
    with pytest.raises(StaleAttempt), database.writing() as session:
        jobs.succeed(session, first)
    with database.writing() as session:
        jobs.request_cancel(session, job_id)
        jobs.end_cancelled(session, second)
        jobs.retry(session, job_id)
    third = take(database)
    with database.writing() as session:
        jobs.succeed(session, third)
    with pytest.raises(Conflict, match="is succeeded"), database.writing() as session:
        jobs.retry(session, job_id)
    assert history(database, job_id)[-5:] == ["cancelling", "cancelled", "queued", "running", "succeeded"]


def test_cancelling_a_training_that_ended_cancels_what_follows_it(database: Database) -> None:
    _, train_id = trained(database)
    with database.writing() as session:
        jobs.request_cancel(session, train_id)
    with database.reading() as session:
        (follower,) = jobs.get(session, train_id).followers
        assert follower.state is JobState.CANCELLED
        assert jobs.get(session, train_id).state is JobState.SUCCEEDED
    with pytest.raises(Conflict, match="already succeeded"), database.writing() as session:
        jobs.request_cancel(session, train_id)


def trained(database: Database, shards: int = 1) -> tuple[str, int]:
    """A training that has ended, followed by a queued evaluation of 360 points in 6 blocks."""
    sha256 = "a" * 64
    evaluation = Evaluation(threat_model=ThreatModel(epsilon=0.2), batch_size=60, shards=shards)
    spec = digits().model_copy(update={"evaluation": evaluation})
    with database.writing() as session:
        job = jobs.create(session, spec)
        claimed = jobs.claim(session, worker="w", lease=LEASE)
        assert claimed is not None
        jobs.succeed(session, claimed)
        stored = StoredFile(sha256, 1)
        job_files.add_file(session, job.id, FileKind.WEIGHTS, number=1, file="w", stored=stored)
        follow_up = spec.follow_up(sha256)
        assert follow_up is not None
        jobs.create(session, follow_up, parent_id=job.id)
        return sha256, job.id


def sharded(database: Database) -> tuple[int, list[int]]:
    """An evaluation in three shards; returns its job's id and theirs."""
    _, train_id = trained(database, shards=3)
    with database.reading() as session:
        (whole,) = jobs.get(session, train_id).followers
        return whole.id, [shard.id for shard in whole.shards]


def states(database: Database, *job_ids: int) -> list[str]:
    return [look(database, job_id).state.value for job_id in job_ids]


def test_the_last_shard_makes_its_evaluation_due(database: Database) -> None:
    whole, shards = sharded(database)
    assert owed(database) == shards, "nobody is woken for what has to wait"
    claims = [take(database) for _ in range(3)]
    assert [(c.job_id, c.shard_index) for c in claims] == [(job_id, index) for index, job_id in enumerate(shards)]
    assert claim(database) is None
    for done in claims[:2]:
        with database.writing() as session:
            jobs.succeed(session, done)
    assert claim(database) is None
    with database.writing() as session:
        shown = jobs.progress(jobs.get(session, whole))
        assert shown is not None
        assert (shown["detail"], shown["fraction"]) == ("2 of 3 are done", pytest.approx(2 / 3))
        jobs.succeed(session, claims[2])
    assert owed(database) == [whole]
    merging = take(database)
    assert (merging.job_id, merging.shard_index) == (whole, None)


def test_shards_that_end_at_the_same_moment_release_their_evaluation_once(database: Database) -> None:
    whole, _ = sharded(database)
    claims = [take(database) for _ in range(3)]
    barrier = threading.Barrier(3)

    def finish(claimed: jobs.Claim) -> None:
        barrier.wait()
        with database.writing() as session:
            jobs.succeed(session, claimed)

    threads = [threading.Thread(target=finish, args=(c,)) for c in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert take(database).job_id == whole
    assert claim(database) is None
    assert history(database, whole) == ["queued", "queued", "running"]


def test_a_lost_shard_is_queued_alone(database: Database) -> None:
    whole, shards = sharded(database)
    claims = [take(database) for _ in range(3)]
    with database.writing() as session:
        jobs.succeed(session, claims[0])
    expire(database, shards[1])
    reap(database)
    assert states(database, whole, *shards) == ["queued", "succeeded", "queued", "running"]
    again = take(database)
    assert (again.job_id, again.attempt, again.shard_index) == (shards[1], 2, 1)


def test_a_shard_that_fails_fails_its_evaluation_and_a_retry_does_what_is_left(database: Database) -> None:
    whole, shards = sharded(database)
    first, second = take(database), take(database)
    with database.writing() as session:
        part = StoredFile("b" * 64, 1)
        job_files.add_file(session, shards[0], FileKind.BLOCK, number=0, file="part", stored=part)
        jobs.succeed(session, first)
        jobs.fail(session, second, FailureCode.OUT_OF_MEMORY, "too much for this GPU")
    assert states(database, whole, *shards) == ["failed", "succeeded", "failed", "cancelled"]
    job = look(database, whole)
    assert job.failure_code is FailureCode.OUT_OF_MEMORY
    assert job.failure_message == f"shard 2 of 3, job {shards[1]}, failed: too much for this GPU"
    with database.writing() as session:
        jobs.retry(session, shards[1])
    assert states(database, whole, *shards) == ["queued", "succeeded", "queued", "queued"]
    claims = [take(database), take(database)]
    assert claim(database) is None
    for claimed in claims:
        with database.writing() as session:
            jobs.succeed(session, claimed)
    merging = take(database)
    assert merging.job_id == whole
    # Long after, when the parts are past their time, all is run again.
    with database.writing() as session:
        jobs.fail(session, merging, FailureCode.TIMED_OUT, "it took too long")
        job_files.drop_resume_files(session, whole)
        jobs.retry(session, whole)
    assert states(database, whole, *shards) == ["queued"] * 4


def test_a_shard_is_cancelled_with_its_whole_evaluation(database: Database) -> None:
    whole, shards = sharded(database)
    running = take(database)
    with database.writing() as session:
        assert jobs.request_cancel(session, shards[2]).state is JobState.CANCELLED
    assert states(database, whole, *shards) == ["cancelled", "cancelling", "cancelled", "cancelled"]
    with pytest.raises(Conflict, match="is still cancelling"), database.writing() as session:
        jobs.retry(session, whole)
    with database.writing() as session:
        jobs.hand_back(session, running)
        jobs.retry(session, whole)
    assert states(database, whole, *shards) == ["queued"] * 4


def test_the_reaper_leaves_living_jobs_alone(database: Database) -> None:
    job_id = send(database)
    take(database)
    reap(database)
    assert look(database, job_id).state is JobState.RUNNING


def test_a_job_handed_back_is_queued_uncharged_and_announced(database: Database) -> None:
    job_id = send(database)
    assert owed(database) == [job_id]
    claimed = take(database)
    with database.writing() as session:
        jobs.hand_back(session, claimed)
    job = look(database, job_id)
    assert (job.state, job.lost_leases, job.worker) == (JobState.QUEUED, 0, None)
    assert owed(database) == [job_id]
    assert take(database).attempt == 2


def test_cancel_from_every_state(database: Database) -> None:
    queued = send(database)
    with database.writing() as session:
        assert jobs.request_cancel(session, queued).state is JobState.CANCELLED
        assert jobs.request_cancel(session, queued).state is JobState.CANCELLED
    assert claim(database) is None

    running = send(database)
    claimed = take(database)
    with database.writing() as session:
        assert jobs.request_cancel(session, running).state is JobState.CANCELLING
        assert jobs.request_cancel(session, running).state is JobState.CANCELLING
        assert jobs.heartbeat(session, claimed, lease=LEASE) is JobState.CANCELLING
        # A worker that drains while it should cancel does not queue the job again.
        jobs.hand_back(session, claimed)
    assert look(database, running).state is JobState.CANCELLED

    done = send(database)
    with database.writing() as session:
        jobs.succeed(session, jobs.claim(session, worker="w", lease=LEASE))  # type: ignore[arg-type]
    with pytest.raises(Conflict, match="already succeeded"), database.writing() as session:
        jobs.request_cancel(session, done)


def test_a_cancelled_job_whose_worker_is_lost_ends_cancelled(database: Database) -> None:
    job_id = send(database)
    take(database)
    with database.writing() as session:
        jobs.request_cancel(session, job_id)
    expire(database, job_id)
    reap(database)
    assert look(database, job_id).state is JobState.CANCELLED


def test_an_idempotency_key_makes_one_job(database: Database) -> None:
    first = jobs.submit(database, digits(), key="k", remember=DAY)
    assert jobs.submit(database, digits(), key="k", remember=DAY).id == first.id
    with pytest.raises(Conflict, match="'k' was used for another job"):
        jobs.submit(database, digits().model_copy(update={"seed": 1}), key="k", remember=DAY)
    assert jobs.submit(database, digits(), key=None, remember=DAY).id != first.id
    assert jobs.submit(database, digits(), key="k", remember=timedelta(0)).id != first.id, "forgotten"


def test_an_idempotency_key_of_an_earlier_version_means_the_same_job(database: Database) -> None:
    """Its spec, and so the hash of what was sent, lacks the fields that came later."""
    job = jobs.submit(database, digits(), key="k", remember=DAY)
    with database.writing() as session:
        earlier = {name: value for name, value in job.spec.items() if name not in ("drop_last_batch", "batch_norm")}
        session.execute(update(Job).values(spec=earlier))
        session.execute(update(IdempotencyKey).values(body_sha256="0" * 64))
    assert jobs.submit(database, digits(), key="k", remember=DAY).id == job.id
    others: list[dict[str, Any]] = [{"spec": digits_trades()}, {"priority": -1}, {"submitter": "Ada"}]
    for other in others:
        with pytest.raises(Conflict, match="used for another job"):
            jobs.submit(database, **{"spec": digits(), "key": "k", "remember": DAY} | other)


def test_an_idempotency_key_makes_one_job_at_the_same_moment_too(database: Database) -> None:
    made: list[int] = []
    barrier = threading.Barrier(4)

    def submit() -> None:
        barrier.wait()
        made.append(jobs.submit(database, digits(), key="same", remember=DAY).id)

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(made)) == 1


def test_a_rolled_back_job_leaves_no_message(database: Database) -> None:
    def create_and_fail() -> None:
        with database.writing() as session:
            jobs.create(session, digits())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        create_and_fail()
    assert owed(database) == []


def test_messages_wait_for_a_broker_that_is_away(database: Database) -> None:
    job_id = send(database)

    def away(_: int) -> None:
        raise ConnectionError

    assert publish_pending(database, away) == 0
    assert owed(database) == [job_id]
    assert owed(database) == []


def test_a_job_that_nobody_claimed_is_announced_again(database: Database) -> None:
    waiting, taken = send(database, priority=-1), send(database)
    owed(database)
    take(database)
    with database.writing() as session:
        assert requeue_unclaimed(session, after=timedelta(minutes=1)) == 0, "its message is not old yet"
        long_ago = database_now(session) - timedelta(minutes=2)
        session.execute(update(OutboxMessage).values(published_at=long_ago))
    with database.writing() as session:
        assert requeue_unclaimed(session, after=timedelta(minutes=1)) == 1
    assert owed(database) == [waiting]
    with database.reading() as session:
        assert taken not in session.scalars(select(OutboxMessage.job_id)).all(), "messages of taken jobs are forgotten"


def test_of_a_long_queue_only_a_few_are_announced_again(database: Database) -> None:
    sent = [send(database) for _ in range(30)]
    assert owed(database) == sent
    with database.writing() as session:
        assert requeue_unclaimed(session, after=timedelta(0)) == 20
    assert owed(database) == sent[:20]


def test_weights_that_are_not_here_are_refused(database: Database) -> None:
    spec = EvaluateSpec(
        name="x",
        dataset="digits",
        architecture="small_cnn",
        weights="0" * 64,
        evaluation=Evaluation(threat_model=ThreatModel(epsilon=0.2)),
    )
    with pytest.raises(Unprocessable, match="no weights with sha256"), database.writing() as session:
        jobs.create(session, spec)


def test_an_unknown_job_is_not_found(database: Database) -> None:
    with pytest.raises(NotFound, match="no job 7"), database.reading() as session:
        jobs.get(session, 7)


def test_pages_walk_back_through_time(database: Database) -> None:
    sent = [send(database) for _ in range(5)]
    with database.reading() as session:
        newest = jobs.page(session, limit=3)
        rest = jobs.page(session, before_id=newest[-1].id, limit=3)
        assert [job.id for job in newest + rest] == sent[::-1]
        assert jobs.page(session, state=JobState.RUNNING) == []
