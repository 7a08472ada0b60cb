"""What a PostgreSQL that hangs does to the service: it takes connections and says nothing.

    python benchmarks/frozen_database.py [--seconds 60]

Starts the service with a training on its worker, freezes the database (SIGSTOP), and asks: at first sixty requests at
once, then one after another; beside them `/healthz` all the while. Then thaws it. Prints how long each kind of answer
took, how long until all is as before, and what became of the training. Leases are those of a new installation.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import httpx2

# The processes of a deployment, as the tests start them.
sys.path.insert(0, str(Path(__file__).parents[1]))

from app.db import migrations
from app.db.database import Database
from gkl.answers import JobState
from tests.cluster import Cluster, PostgresServer, until
from tests.specs import endless_train_spec

_PATHS = ("/api/v1/jobs", "/api/v1/leaderboards", "/", "/jobs", "/workers", "/readyz", "/static/style.css")
_AT_ONCE = 60

Answers = dict[str, list[tuple[int, float]]]
"""Of each path the status and the seconds of each answer."""


async def ask(client: httpx2.AsyncClient, path: str, answers: Answers) -> None:
    began = time.perf_counter()
    status = (await client.get(path)).status_code
    answers[path].append((status, time.perf_counter() - began))


async def ask_all_the_while(url: str, seconds: float, answers: Answers) -> None:
    limits = httpx2.Limits(max_connections=200)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:
        until_when = time.monotonic() + seconds

        async def one_after_another(path: str, pause: float) -> None:
            while time.monotonic() < until_when:
                await ask(client, path, answers)
                await asyncio.sleep(pause)

        crowd = [ask(client, _PATHS[number % len(_PATHS)], answers) for number in range(_AT_ONCE)]
        lines = [one_after_another(path, 1) for path in _PATHS]
        await asyncio.gather(*crowd, *lines, one_after_another("/healthz", 0.2))


def seconds_until_all_is_well(url: str) -> float:
    began = time.perf_counter()
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
        until(lambda: all(client.get(path).status_code == 200 for path in _PATHS))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    seconds = parser.parse_args().seconds
    server = PostgresServer.started()
    try:
        url = server.create("frozen")
        database = Database(url)
        migrations.upgrade(database)
        database.close()
        as_installed = {"lease_seconds": 90.0, "heartbeat_seconds": 15.0, "relay_seconds": 5.0, "poll_seconds": 5.0}
        with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), url, **as_installed) as cluster:
            cluster.start("api", "relay", "worker")
            job_id = cluster.send(endless_train_spec())
            until(lambda: cluster.saved(job_id) > 0)
            answers: Answers = defaultdict(list)
            with server.frozen():
                asyncio.run(ask_all_the_while(cluster.url, seconds, answers))
            recovery = seconds_until_all_is_well(cluster.url)
            progress = cluster.job(job_id).progress
            until(lambda: cluster.job(job_id).progress != progress)
            # Whoever would take the job wrongly has had the time.
            time.sleep(10)
            job = cluster.job(job_id)
    finally:
        server.remove()
    print("| path | answers | median | slowest |")
    print("|---|---|---|---|")
    for path, found in sorted(answers.items()):
        times = sorted(each for _, each in found)
        statuses = ", ".join(f"{count} x {status}" for status, count in Counter(each for each, _ in found).items())
        print(f"| `{path}` | {statuses} | {times[len(times) // 2]:.2f} s | {times[-1]:.2f} s |")
    is_kept = (job.state, job.attempt, job.lost_leases) == (JobState.RUNNING, 1, 0)
    print(f"\nAll as before {recovery:.1f} s after the thaw; the training kept its lease: {is_kept}.")


if __name__ == "__main__":
    main()
