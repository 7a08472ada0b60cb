"""schemathesis against a whole service: does each operation answer as the OpenAPI document says, whatever it is sent?

    python benchmarks/openapi.py [--examples 150] [--phases examples,coverage,fuzzing,stateful] [--seed 1]

PostgreSQL, Valkey and the API on loopback, asking for tokens and closed to who has none; with a model that a worker
has trained and attacked here, imported entries and an upload, so that there is something to ask for. The requests are
made from the document: examples, values at the edges, random ones that fit and that do not. Prints how many there were
and how many of each status; ends with status 1 if one was answered with 5xx or otherwise than documented.

Needs the packages of `.[dev]`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx2
import schemathesis

from app.accounts import tokens
from app.accounts.audit import COMMAND_LINE
from app.accounts.tokens import Limits
from app.boards import robustbench
from app.db import migrations
from app.db.database import Database
from gkl.answers import Scope
from gkl.client import Client
from tests.app.boards.test_robustbench import LINF, contents
from tests.cluster import Cluster, PostgresServer, until
from tests.specs import tiny_train_spec

# Left out: that everything which fits the schema is accepted, since a document cannot say all that a spec has to be
# (a valid one may name weights that are not here).
_CHECKS = ("positive_data_acceptance",)


# A piece of an upload is bytes like any other body of a file; schemathesis knows the type only when told.
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")


def prepared(cluster: Cluster) -> str:
    """A service with something in it; returns an admin's token."""
    with cluster.database.writing() as session:
        limits = Limits(None, None, None, None, None)
        _, secret = tokens.create(session, "Fuzz", Scope.ADMIN, lifetime=None, limits=limits, by=COMMAND_LINE)
    robustbench.import_files(cluster.database, [("cifar10/Linf/First.json", contents(LINF))])
    cluster.start("api", "relay", "worker")
    with Client(cluster.url, secret) as client:
        job = client.submit(tiny_train_spec())
        until(lambda: client.job(job.id).state.is_final, 120)
        (evaluation,) = client.job(job.id).child_ids
        until(lambda: client.job(evaluation).state.is_final, 120)
    # What is sent from here on is only queued: jobs that take hours would be among it.
    cluster.kill("worker")
    return secret


def counted(report: Path) -> Counter[int]:
    """How many requests were answered with each status."""
    statuses: Counter[int] = Counter()
    for line in report.open():
        found = json.loads(line)
        for event in found.values():
            for interaction in event.get("recorder", {}).get("interactions", {}).values():
                response = interaction.get("response")
                statuses[response["status_code"] if response else 0] += 1
    return statuses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=150, help="most requests of each operation and phase")
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful", help="which of schemathesis' phases")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    postgres = PostgresServer.started()
    try:
        url = postgres.create("openapi")
        database = Database(url)
        migrations.upgrade(database)
        database.close()
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            with Cluster(directory, url, access="tokens", anonymous_read=False, max_stream_seconds=0.2) as cluster:
                secret = prepared(cluster)
                started = time.monotonic()
                report = directory / "report.ndjson"
                done = subprocess.run(
                    [
                        str(Path(sys.executable).with_name("st")),
                        "run",
                        f"{cluster.url}/openapi.json",
                        f"--header=Authorization: Bearer {secret}",
                        "--checks=all",
                        f"--exclude-checks={','.join(_CHECKS)}",
                        f"--phases={options.phases}",
                        f"--max-examples={options.examples}",
                        f"--seed={options.seed}",
                        "--suppress-health-check=all",
                        "--continue-on-failure",
                        "--request-timeout=60",
                        "--warnings=off",
                        "--report=ndjson",
                        f"--report-ndjson-path={report}",
                        "--output-sanitize=true",
                        "--no-color",
                    ],
                    check=False,
                    cwd=directory,
                    # This module, for what it tells schemathesis.
                    env={**os.environ, "SCHEMATHESIS_HOOKS": "benchmarks.openapi", "PYTHONPATH": sys.path[0]},
                )
                statuses = counted(report)
                alive = httpx2.get(f"{cluster.url}/readyz", timeout=10).status_code
        requests, seconds = sum(statuses.values()), time.monotonic() - started
        print(f"{requests} requests in {seconds:.0f} s; by status: {dict(sorted(statuses.items()))}; readyz {alive}")
        failed = done.returncode != 0 or alive != 200 or any(status >= 500 for status in statuses)
        sys.exit(1 if failed else 0)
    finally:
        postgres.remove()


if __name__ == "__main__":
    main()
