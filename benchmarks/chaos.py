"""Short jobs while processes are killed, frozen and cut off: does every one end, once, and right?

    python benchmarks/chaos.py [--jobs 100] [--workers 2] [--every-seconds 4] [--for-seconds 600]
        [--database postgresql] [--store folder]

First the same jobs in quiet, each different one once. Then all of them, half of them trainings and half the evaluations
that follow, with two processes of the API, two relays, and a random fault every few seconds for some minutes: kill -9
of a worker, of a runner, of an API process, of a relay; SIGTERM of a worker; a worker frozen for longer than its lease;
the broker stopped, wiped or frozen; the database restarted or frozen; the disk of the data directory full; a bit
flipped in what a running job saved, or the S3 store cut off or frozen; a message sent again. Several hold at a time.
Then what is left may end in peace. What was killed is started again, as a container engine would. A job whose runner
was killed, or whose disk was full, fails, as it should; a client that retries sends it on, as this one does.

The disk is a small tmpfs in a mount namespace, which needs root or a kernel that gives it to others; without one no
disk is filled. Needs the packages of `.[dev]`. Ends with status 1 if anything was lost, counted twice, or came out
different.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sqlalchemy import func, select

from app import jobs
from app.boards import results
from app.core.errors import NotFound
from app.db import migrations
from app.db.database import Database
from app.db.tables import Evaluation, FileKind, Job, JobFile
from app.jobs import job_log
from app.store import open_store
from benchmarks.chaos_faults import Bucket, Chaos, bucket, enter_own_namespace, small_disk
from gkl.answers import JobKind, JobState
from gkl.client import Client, ClientError
from gkl.errors import FailureCode
from gkl.spec import Evaluation as EvaluationSpec
from gkl.spec import InnerMaximization, ThreatModel, TrainSpec
from tests.cluster import Cluster, PostgresServer
from tests.specs import tiny_train_spec

_DIFFERENT = 6


def spec(seed: int) -> TrainSpec:
    """Some seconds of training, saved every epoch, then two attacks; every fifth in two shards."""
    attacks: Any = ("apgd-ce", "apgd-dlr")
    evaluation = EvaluationSpec(
        protocol="custom",
        attacks=attacks,
        threat_model=ThreatModel(epsilon=0.1),
        batch_size=20,
        num_points=60,
        shards=2 if seed % 5 == 0 else 1,
    )
    return tiny_train_spec(
        name=f"Seed {seed}",
        architecture="tiny_cnn",
        epochs=5,
        seed=seed,
        inner_maximization=InnerMaximization(num_steps=2),
        evaluation=evaluation,
    )


def run_quietly(cluster: Cluster, specs: list[TrainSpec]) -> dict[str, Any]:
    sent = [cluster.send(each) for each in specs]
    wait_until_ended(cluster, lambda: None)
    return {each.name: result(cluster, job_id) for each, job_id in zip(specs, sent, strict=True)}


def wait_until_ended(cluster: Cluster, meanwhile: Callable[[], None]) -> None:
    while True:
        meanwhile()
        with cluster.database.reading() as session:
            final = [state for state in JobState if state.is_final]
            if session.scalar(select(func.count()).where(Job.state.not_in(final))) == 0:
                return
        time.sleep(0.2)


def result(cluster: Cluster, job_id: int) -> Any:
    """What a training and its evaluation came to."""
    with cluster.database.reading() as session:
        weights = session.scalars(
            select(JobFile.sha256).where(JobFile.job_id == job_id, JobFile.kind == FileKind.WEIGHTS)
        ).all()
        (follower,) = jobs.get(session, job_id).followers
        measured = results.evaluation_of_job(session, follower.id)
        assert measured is not None
        attacks = [(a.attack, a.points, a.broken) for a in measured.attacks]
    return weights, measured.clean_correct, measured.robust_correct, attacks


class Sender:
    """A client: sends jobs over REST, by whichever process of the API, and retries those that failed by a fault, as
    its user would."""

    def __init__(self, cluster: Cluster, urls: list[str], specs: list[TrainSpec], pause_seconds: float) -> None:
        self.cluster, self.urls, self.specs = cluster, urls, specs
        self.pause_seconds = pause_seconds
        self.random = random.Random(0)
        self.sent: list[int] = []
        self.retries: Counter[str] = Counter()
        self.thread = threading.Thread(target=self._send, daemon=True)
        self.thread.start()

    def _client(self) -> Client:
        return Client(self.random.choice(self.urls))

    def _send(self) -> None:
        for number, each in enumerate(self.specs):
            while True:
                try:
                    with self._client() as client:
                        # The same key again: if only the answer was lost, it is the same job.
                        self.sent.append(client.submit(each, key=f"chaos {number}", submitter=f"user {number % 3}").id)
                    break
                except ClientError:
                    time.sleep(0.3)
            time.sleep(self.pause_seconds)

    def retry_failed(self) -> None:
        with self.cluster.database.reading() as session:
            failed = session.scalars(
                select(Job).where(
                    Job.state == JobState.FAILED,
                    Job.kind != JobKind.SHARD,
                    Job.failure_code.in_((FailureCode.KILLED, FailureCode.WORKER_LOST, FailureCode.NO_SPACE_LEFT)),
                )
            ).all()
        for job in failed:
            try:
                with self._client() as client:
                    client.retry(job.id)
                self.retries[str(job.failure_code)] += 1
            except ClientError:
                continue


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=100)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--every-seconds", type=float, default=4.0)
    options.add_argument("--for-seconds", type=float, default=600.0)
    options.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    options.add_argument("--store", choices=["folder", "s3"], default="folder")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep-logs", type=Path, help="where the processes' logs are left")
    given = options.parse_args()
    has_disk = enter_own_namespace()
    if not has_disk:
        print("No disk is filled: this machine gives no mount namespace.", flush=True)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos")))
        postgres = None
        if given.database == "postgresql":
            postgres = PostgresServer.started()
            stack.callback(postgres.remove)
            quiet_url, url = postgres.create("quiet"), postgres.create("chaos")
        else:
            quiet_url, url = (f"sqlite:///{directory / name}.sqlite3" for name in ("quiet", "chaos"))
        for each in (quiet_url, url):
            database = Database(each)
            migrations.upgrade(database)
            database.close()
        disk = stack.enter_context(small_disk(directory / "chaos" / "data")) if has_disk else None
        s3 = stack.enter_context(bucket()) if given.store == "s3" else None
        is_right = run(given, directory, postgres=postgres, quiet_url=quiet_url, url=url, disk=disk, s3=s3)
    sys.exit(0 if is_right else 1)


def run(
    given: Any,
    directory: Path,
    *,
    postgres: PostgresServer | None,
    quiet_url: str,
    url: str,
    disk: Path | None,
    s3: Bucket | None,
) -> bool:
    trainings = given.jobs // 2
    different = [spec(seed) for seed in range(min(_DIFFERENT, trainings))]
    specs = [different[number % len(different)] for number in range(trainings)]
    began = time.monotonic()
    with Cluster(directory / "quiet", quiet_url) as cluster:
        cluster.start("relay", "worker-1", "worker-2")
        expected = run_quietly(cluster, different)
    print(f"{len(different)} different jobs were run in quiet, in {time.monotonic() - began:.0f} s.", flush=True)

    changes: dict[str, Any] = {
        "max_lost_leases": 10,
        # Beside the chaos: what is not needed goes, and nothing else.
        "cleanup_seconds": 20.0,
        "min_free_bytes": 8 * 1024**2,
        "store_url": s3.url if s3 is not None else "",
    }
    with Cluster(directory / "chaos", url, **changes) as cluster, ExitStack() as stack:
        chaos = Chaos(cluster, workers=given.workers, seed=given.seed, postgres=postgres, disk=disk, bucket=s3)
        stack.callback(keep_logs, cluster, given.keep_logs)
        # Whatever happens: a frozen server could not be ended.
        stack.callback(chaos.mend, at_once=True)
        chaos.start()
        started = last_fault = time.monotonic()
        # Over most of the time, so that faults always meet work.
        sender = Sender(cluster, chaos.urls, specs, 0.8 * given.for_seconds / len(specs))
        while True:
            try:
                chaos.mend()
                if chaos.can_read:
                    sender.retry_failed()
                now = time.monotonic()
                if now - started >= given.for_seconds:
                    if not chaos.away and not sender.thread.is_alive() and ended(cluster):
                        break
                elif now - last_fault >= given.every_seconds:
                    last_fault = now
                    chaos.one()
            except OSError as error:
                print(f"(passing: {error})")
            time.sleep(0.1)
        seconds, faults = time.monotonic() - started, sum(chaos.counts.values())
        print(f"{faults} faults in {given.for_seconds:.0f} s; all jobs had ended after {seconds:.0f} s:")
        for what, count in chaos.counts.most_common():
            print(f"  {count:4} {what}")
        return report(cluster, sender, specs, expected)


def keep_logs(cluster: Cluster, directory: Path | None) -> None:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        for log in cluster.log("any").parent.glob("*.log"):
            (directory / log.name).write_bytes(log.read_bytes())


def ended(cluster: Cluster) -> bool:
    with cluster.database.reading() as session:
        final = [state for state in JobState if state.is_final]
        return session.scalar(select(func.count()).where(Job.state.not_in(final))) == 0


def report(cluster: Cluster, sender: Sender, specs: list[TrainSpec], expected: dict[str, Any]) -> bool:
    with cluster.database.reading() as session:
        every = session.scalars(select(Job)).all()
        counted = Counter(session.scalars(select(Evaluation.job_id)))
        named = set(session.scalars(select(JobFile.sha256)))
        logs = [job_log.tail(session, job.id, 10**7) for job in every]
    states = Counter(job.state.value for job in every)
    for job in every:
        if job.state is JobState.FAILED:
            print(f"job {job.id} ({job.kind}): {job.failure_code}: {job.failure_message}")
    lost = [job_id for job_id in sender.sent if job_id not in {job.id for job in every}]
    trains = [job for job in every if job.kind is JobKind.TRAIN]
    evaluations = [job for job in every if job.kind is JobKind.EVALUATE]
    shards = Counter(job.parent_id for job in every if job.kind is JobKind.SHARD)
    wrong = [
        job_id
        for job_id, each in zip(sender.sent, specs, strict=True)
        if result(cluster, job_id) != expected[each.name]
    ]
    attempts = Counter(job.attempt for job in every)
    seen = sum(text.count("is gone or damaged; it is computed again") for text in logs)
    print(f"{len(trains)} trainings, {len(evaluations)} evaluations, {shards.total()} shards: {dict(states)}")
    print(f"attempts: {dict(sorted(attempts.items()))}; retried by the client: {dict(sender.retries)}")
    print(f"damaged or missing files that a run noticed, and made again: {seen}")
    checks = {
        "sent and lost": len(lost),
        "sent and there twice": len(trains) - len(specs),
        "trainings without exactly one evaluation": len(
            [job for job in trains if len(job_followers(cluster, job.id)) != 1]
        ),
        "evaluations not counted exactly once": len([job for job in evaluations if counted[job.id] != 1]),
        "evaluations with a shard too many or too few": len(
            [job for job in evaluations if shards[job.id] not in (0, job.spec["evaluation"]["shards"])]
        ),
        "not succeeded": len(every) - states["succeeded"],
        "other than in quiet": len(wrong),
        "files that a row names and that are not whole": len([each for each in named if not is_whole(cluster, each)]),
    }
    for what, count in checks.items():
        print(f"  {what}: {count}")
    return not any(checks.values())


def is_whole(cluster: Cluster, sha256: str) -> bool:
    try:
        open_store(cluster.settings).path(sha256)
    except NotFound:
        return False
    return True


def job_followers(cluster: Cluster, job_id: int) -> list[Job]:
    with cluster.database.reading() as session:
        return jobs.get(session, job_id).followers


if __name__ == "__main__":
    main()
