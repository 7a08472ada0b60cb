"""A crowd that sends jobs while a worker runs one, and a queue of 10,000 against one of 100.

    python benchmarks/submit_load.py [--clients 50] [--seconds 30] [--queued 10000]

First part: each client sends a job and looks at it, as fast as it is answered, while a worker trains; latencies of
POST and GET as the clients see them, on PostgreSQL, everything on this one machine.

Second part: how long a claim takes and how long the jobs page takes to answer, with a short and with a long queue of
twenty submitters, in alternating order; the figure that means something on another machine is their ratio.

Needs the packages of `.[dev]`. Ends with status 1 if a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from statistics import median, quantiles

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx2
from sqlalchemy import text

from app import jobs
from app.db import migrations
from app.db.database import Database
from gkl.recipes.adversarial import digits
from tests.cluster import Cluster, PostgresServer, until
from tests.specs import endless_train_spec

_SPEC = digits().model_dump(mode="json")
_SUBMITTERS = 20
_LEASE = timedelta(seconds=90)


class Latencies:
    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"POST": [], "GET": []}
        self.statuses: Counter[str] = Counter()

    async def request(
        self, client: httpx2.AsyncClient, method: str, path: str, **options: object
    ) -> dict[str, int] | None:
        started = time.perf_counter()
        try:
            response = await client.request(method, path, **options)  # type: ignore[arg-type]
        except httpx2.TransportError as error:
            self.statuses[type(error).__name__] += 1
            return None
        self.seconds[method].append(time.perf_counter() - started)
        self.statuses[str(response.status_code)] += 1
        answer: dict[str, int] = response.json()
        return answer if response.is_success else None


async def crowd(url: str, clients: int, seconds: float) -> Latencies:
    found, until_then = Latencies(), time.monotonic() + seconds

    async def one(number: int) -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
            while time.monotonic() < until_then:
                query = {"submitter": f"user {number}"}
                job = await found.request(client, "POST", "/api/v1/jobs", json=_SPEC, params=query)
                if job is not None:
                    await found.request(client, "GET", f"/api/v1/jobs/{job['id']}")

    await asyncio.gather(*(one(number) for number in range(clients)))
    return found


def load(cluster: Cluster, clients: int, seconds: float) -> bool:
    running = cluster.send(endless_train_spec(), priority=100)
    cluster.start("api", "relay", "worker")
    until(lambda: cluster.job(running).progress)
    found = asyncio.run(crowd(cluster.url, clients, seconds))
    job = cluster.job(running)
    print(f"{clients} clients for {seconds:.0f} s beside a running job, answers {dict(found.statuses)}:")
    for method, values in found.seconds.items():
        p50, p99 = median(values), quantiles(values, n=100)[98]
        print(
            f"  {method:4} {len(values):6} requests, {len(values) / seconds:6.1f} a second, "
            f"p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms"
        )
    print(f"  the job beside it: {job.state}, attempt {job.attempt}, lost {job.lost_leases}")
    for name in ("worker", "relay", "api"):
        cluster.kill(name)
    good = {"200", "202"}
    return set(found.statuses) <= good and job.attempt == 1


def fill(database: Database, queued: int) -> None:
    done = 0
    while done < queued:
        with database.writing() as session:
            for _ in range(min(500, queued - done)):
                jobs.create(session, digits(), submitter=f"user {done % _SUBMITTERS}")
                done += 1


def claim_seconds(database: Database) -> float:
    started = time.perf_counter()
    with database.writing() as session:
        claim = jobs.claim(session, worker="benchmark", lease=_LEASE)
    taken = time.perf_counter() - started
    assert claim is not None
    with database.writing() as session:
        jobs.hand_back(session, claim)
    return taken


def page_seconds(client: httpx2.Client) -> float:
    started = time.perf_counter()
    response = client.get("/jobs", headers={"Accept": "text/html"})
    taken = time.perf_counter() - started
    assert response.status_code == 200
    return taken


def queues(short: Cluster, long: Cluster, few: int, many: int, turns: int) -> None:
    for cluster, queued in ((short, few), (long, many)):
        fill(cluster.database, queued)
        # As the server does by itself within a minute of so many new rows.
        with cluster.database.writing() as session:
            session.execute(text("ANALYZE"))
        cluster.start("api")
    times: dict[tuple[str, int], list[float]] = {}
    with httpx2.Client(base_url=short.url) as to_short, httpx2.Client(base_url=long.url) as to_long:
        both = [(short, to_short, few), (long, to_long, many)]
        for turn in range(turns + 5):
            for cluster, client, queued in both if turn % 2 else both[::-1]:
                claim, page = claim_seconds(cluster.database), page_seconds(client)
                # The first ones fill caches and pools.
                if turn >= 5:
                    times.setdefault(("claim", queued), []).append(claim)
                    times.setdefault(("jobs page", queued), []).append(page)
    print(f"{few} queued jobs against {many}, medians of {turns} turns:")
    for what in ("claim", "jobs page"):
        a, b = median(times[what, few]), median(times[what, many])
        print(f"  {what:9} {1000 * a:6.1f} ms and {1000 * b:6.1f} ms, ratio {b / a:.2f}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--clients", type=int, default=50)
    options.add_argument("--seconds", type=float, default=30.0)
    options.add_argument("--queued", type=int, default=10_000)
    options.add_argument("--turns", type=int, default=100)
    given = options.parse_args()
    postgres = PostgresServer.started()
    try:
        with tempfile.TemporaryDirectory(prefix="load") as folder:
            urls = [postgres.create(name) for name in ("crowd", "short", "long")]
            for url in urls:
                database = Database(url)
                migrations.upgrade(database)
                database.close()
            with Cluster(Path(folder) / "crowd", urls[0]) as cluster:
                good = load(cluster, given.clients, given.seconds)
            with Cluster(Path(folder) / "short", urls[1]) as short, Cluster(Path(folder) / "long", urls[2]) as long:
                queues(short, long, 100, given.queued, given.turns)
    finally:
        postgres.remove()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
