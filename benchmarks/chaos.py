"""100 short jobs while processes are killed, frozen and cut off: does every one end, once, and right?

    python benchmarks/chaos.py [--jobs 100] [--workers 3] [--every-seconds 2] [--for-seconds 200]
        [--database postgresql]

First the same jobs in quiet, each different one once. Then all of them, half of them trainings and half the evaluations
that follow, with a random fault every two seconds for some minutes: kill -9 of a worker, of a runner, of the API, of
the relay; SIGTERM of a worker; a worker frozen for longer than its lease; the broker stopped or wiped; the database
restarted; a message sent again. Then what is left may end in peace. What was killed is started again, as a container
engine would. A job whose runner was killed fails, as it should, with `killed`; a client that retries sends it on, as
this one does.

Needs the packages of `.[dev]`. Ends with status 1 if anything was lost, counted twice, or came out different.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sqlalchemy import func, select

from app import jobs, leaderboard, migrations
from app.broker import make_celery, publisher
from app.client import Client, ClientError
from app.database import Database
from app.tables import Evaluation, FileKind, Job, JobFile, JobKind, JobState
from gkl.errors import FailureCode
from gkl.spec import Evaluation as EvaluationSpec
from gkl.spec import InnerMaximization, ThreatModel, TrainSpec
from tests.cluster import Cluster, PostgresServer
from tests.specs import tiny_train_spec

_DIFFERENT = 10


def spec(seed: int) -> TrainSpec:
    """Some seconds of training, saved every epoch, then two attacks; every fifth in two shards."""
    attacks: Any = ("apgd-ce", "apgd-dlr")
    evaluation = EvaluationSpec(
        protocol="custom",
        attacks=attacks,
        threat_model=ThreatModel(epsilon=0.1),
        batch_size=20,
        num_points=40,
        shards=2 if seed % 5 == 0 else 1,
    )
    return tiny_train_spec(
        name=f"Seed {seed}",
        architecture="tiny_cnn",
        epochs=3,
        seed=seed,
        inner_maximization=InnerMaximization(num_steps=2),
        evaluation=evaluation,
    )


class Chaos:
    def __init__(self, cluster: Cluster, postgres: PostgresServer | None, workers: int, seed: int) -> None:
        self.cluster, self.postgres = cluster, postgres
        self.workers = [f"worker-{number}" for number in range(1, workers + 1)]
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.publish = publisher(make_celery(cluster.settings))
        self.frozen: dict[str, float] = {}
        self.broker_back_at: float | None = None

    def one(self) -> None:
        """A random fault, on something that runs."""
        faults: list[Callable[[], str | None]] = [
            self.kill_worker,
            self.kill_runner,
            self.kill_api,
            self.kill_relay,
            self.stop_worker,
            self.freeze_worker,
            self.broker_away,
            self.wipe_broker,
            self.send_again,
        ]
        if self.postgres is not None:
            faults.append(self.restart_database)
        # Not each is possible at any moment: there may be no runner to kill.
        while (name := self.random.choice(faults)()) is None:
            continue
        self.counts[name] += 1

    def mend(self) -> None:
        """What somebody or something would do after a while."""
        for name, until in list(self.frozen.items()):
            if time.monotonic() > until:
                self.cluster.signal(name, signal.SIGCONT)
                del self.frozen[name]
        if self.broker_back_at is not None and time.monotonic() > self.broker_back_at:
            self.cluster.broker.start()
            self.broker_back_at = None
        for name, process in list(self.cluster.processes.items()):
            if process.poll() is not None:
                self.cluster.kill(name)
                self.cluster.start_unwaited(name)

    def free_worker(self) -> str | None:
        free = [name for name in self.workers if name not in self.frozen]
        return self.random.choice(free) if free else None

    def kill_worker(self) -> str | None:
        return self._signal(self.free_worker(), signal.SIGKILL, "kill -9 of a worker")

    def stop_worker(self) -> str | None:
        return self._signal(self.free_worker(), signal.SIGTERM, "SIGTERM of a worker")

    def kill_api(self) -> str | None:
        return self._signal("api", signal.SIGKILL, "kill -9 of the API")

    def kill_relay(self) -> str | None:
        return self._signal("relay", signal.SIGKILL, "kill -9 of the relay")

    def _signal(self, name: str | None, number: signal.Signals, what: str) -> str | None:
        if name is None or self.cluster.processes[name].poll() is not None:
            return None
        self.cluster.signal(name, number)
        return what

    def kill_runner(self) -> str | None:
        name = self.free_worker()
        if name is None or self.cluster.processes[name].poll() is not None:
            return None
        runners = self.cluster.runners(name)
        for runner in runners:
            runner.kill()
        return "kill -9 of a runner" if runners else None

    def freeze_worker(self) -> str | None:
        # One at a time: somebody has to work.
        name = self.free_worker() if not self.frozen else None
        if self._signal(name, signal.SIGSTOP, "") is None or name is None:
            return None
        self.frozen[name] = time.monotonic() + self.cluster.settings.lease_seconds + self.random.uniform(1, 4)
        return "a worker frozen past its lease"

    def broker_away(self) -> str | None:
        if self.broker_back_at is not None:
            return None
        self.cluster.broker.stop()
        self.broker_back_at = time.monotonic() + self.random.uniform(1, 8)
        return "broker stopped for some seconds, and empty after"

    def wipe_broker(self) -> str | None:
        if self.broker_back_at is not None:
            return None
        self.cluster.broker.wipe()
        return "broker wiped"

    def restart_database(self) -> str | None:
        assert self.postgres is not None
        self.postgres.stop()
        time.sleep(self.random.uniform(0, 2))
        self.postgres.start()
        return "database restarted"

    def send_again(self) -> str | None:
        with self.cluster.database.reading() as session:
            known = session.scalars(select(Job.id)).all()
        try:
            self.publish(self.random.choice(known))
        except (OSError, IndexError):
            return None
        return "a message sent again, of whatever job"


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
        measured = leaderboard.evaluation_of_job(session, follower.id)
        assert measured is not None
        attacks = [(a.attack, a.points, a.broken) for a in measured.attacks]
    return weights, measured.clean_correct, measured.robust_correct, attacks


class Sender:
    """A client: sends jobs over REST and retries those that failed by a kill, as its user would."""

    def __init__(self, cluster: Cluster, specs: list[TrainSpec]) -> None:
        self.cluster, self.specs = cluster, specs
        self.sent: list[int] = []
        self.retries = 0
        self.thread = threading.Thread(target=self._send)
        self.thread.start()

    def _send(self) -> None:
        for number, each in enumerate(self.specs):
            while True:
                try:
                    with Client(self.cluster.url) as client:
                        # The same key again: if only the answer was lost, it is the same job.
                        self.sent.append(client.submit(each, key=f"chaos {number}", submitter=f"user {number % 3}").id)
                    break
                except ClientError:
                    time.sleep(0.3)
            time.sleep(0.3)

    def retry_killed(self) -> None:
        with self.cluster.database.reading() as session:
            killed = session.scalars(
                select(Job.id).where(
                    Job.state == JobState.FAILED,
                    Job.kind != JobKind.SHARD,
                    Job.failure_code.in_((FailureCode.KILLED, FailureCode.WORKER_LOST)),
                )
            ).all()
        for job_id in killed:
            try:
                with Client(self.cluster.url) as client:
                    client.retry(job_id)
                self.retries += 1
            except ClientError:
                continue


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=100)
    options.add_argument("--workers", type=int, default=3)
    options.add_argument("--every-seconds", type=float, default=2.0)
    options.add_argument("--for-seconds", type=float, default=200.0)
    options.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos") as folder:
        directory = Path(folder)
        postgres = None
        if given.database == "postgresql":
            postgres = PostgresServer.started()
            quiet_url, url = postgres.create("quiet"), postgres.create("chaos")
        else:
            quiet_url, url = (f"sqlite:///{directory / name}.sqlite3" for name in ("quiet", "chaos"))
        for each in (quiet_url, url):
            database = Database(each)
            migrations.upgrade(database)
            database.close()
        try:
            sys.exit(0 if run(given, directory, postgres, quiet_url, url) else 1)
        finally:
            if postgres is not None:
                postgres.remove()


def run(given: Any, directory: Path, postgres: PostgresServer | None, quiet_url: str, url: str) -> bool:
    trainings = given.jobs // 2
    different = [spec(seed) for seed in range(min(_DIFFERENT, trainings))]
    specs = [different[number % len(different)] for number in range(trainings)]
    with Cluster(directory / "quiet", quiet_url) as cluster:
        cluster.start("relay", "worker-1", "worker-2")
        expected = run_quietly(cluster, different)
    print(f"{len(different)} different jobs were run in quiet.", flush=True)

    with Cluster(directory / "chaos", url, max_lost_leases=10) as cluster:
        chaos = Chaos(cluster, postgres, given.workers, given.seed)
        cluster.start("api", "relay", *chaos.workers)
        started = last_fault = time.monotonic()
        sender = Sender(cluster, specs)
        while True:
            try:
                chaos.mend()
                sender.retry_killed()
                now = time.monotonic()
                if now - started >= given.for_seconds:
                    if not sender.thread.is_alive() and ended(cluster):
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


def ended(cluster: Cluster) -> bool:
    with cluster.database.reading() as session:
        final = [state for state in JobState if state.is_final]
        return session.scalar(select(func.count()).where(Job.state.not_in(final))) == 0


def report(cluster: Cluster, sender: Sender, specs: list[TrainSpec], expected: dict[str, Any]) -> bool:
    with cluster.database.reading() as session:
        every = session.scalars(select(Job)).all()
        counted = Counter(session.scalars(select(Evaluation.job_id)))
    states = Counter(job.state.value for job in every)
    lost = [job_id for job_id in sender.sent if job_id not in {job.id for job in every}]
    trains = [job for job in every if job.kind is JobKind.TRAIN]
    evaluations = [job for job in every if job.kind is JobKind.EVALUATE]
    wrong = [
        job_id
        for job_id, each in zip(sender.sent, specs, strict=True)
        if result(cluster, job_id) != expected[each.name]
    ]
    attempts = Counter(job.attempt for job in every)
    shards = len(every) - len(trains) - len(evaluations)
    print(f"{len(trains)} trainings, {len(evaluations)} evaluations, {shards} shards: {dict(states)}")
    print(f"attempts: {dict(sorted(attempts.items()))}; retried by the client after a kill: {sender.retries}")
    checks = {
        "sent and lost": len(lost),
        "sent and there twice": len(trains) - len(specs),
        "trainings without exactly one evaluation": len(
            [job for job in trains if len(job_followers(cluster, job.id)) != 1]
        ),
        "evaluations not counted exactly once": len([job for job in evaluations if counted[job.id] != 1]),
        "not succeeded": len(every) - states["succeeded"],
        "other than in quiet": len(wrong),
    }
    for what, count in checks.items():
        print(f"  {what}: {count}")
    return not any(checks.values())


def job_followers(cluster: Cluster, job_id: int) -> list[Job]:
    with cluster.database.reading() as session:
        return jobs.get(session, job_id).followers


if __name__ == "__main__":
    main()
