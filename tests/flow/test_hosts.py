"""Hosts that share no disk: API, relay and workers, each with a data directory of its own, and between them only the
database, the broker and a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from safetensors.numpy import save
from sqlalchemy import select

from app.db.tables import Job
from app.jobs import job_log
from gkl.answers import JobKind, JobState
from gkl.evaluation import verify
from gkl.spec import InnerMaximization
from tests.cluster import Cluster, until
from tests.object_server import ObjectServer, object_server
from tests.specs import NO_FILES, tiny_train_spec

# Hosts share no SQLite file.
pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with object_server() as server:
        server.make_bucket("gklbench")
        yield server


@pytest.fixture
def hosts(database_url: str, server: ObjectServer, tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, database_url, store_url="s3://gklbench/service") as cluster:
        yield cluster


def start(hosts: Cluster, server: ObjectServer, *names: str) -> None:
    """Each on a host of its own."""
    for name in names:
        data_dir = hosts.settings.data_dir / name
        data_dir.mkdir(exist_ok=True)
        hosts.start(name, environment=server.environment, data_dir=data_dir)


def log_of(hosts: Cluster, job_id: int) -> str:
    with hosts.database.reading() as session:
        return job_log.tail(session, job_id, 10_000)


def files(hosts: Cluster, name: str) -> set[str]:
    """What a host's data directory holds that is no log of a process."""
    data_dir = hosts.settings.data_dir / name
    return {
        path.relative_to(data_dir).parts[0] for path in data_dir.rglob("*") if path.is_file() and path.name != ".lock"
    }


@pytest.mark.long
def test_a_job_goes_from_host_to_host_and_its_row_is_proven(
    hosts: Cluster, server: ObjectServer, tmp_path: Path
) -> None:
    """A training whose host is lost goes on elsewhere; two share the evaluation; the API serves what they made."""
    start(hosts, server, "api", "relay", "first")
    spec = tiny_train_spec(epochs=40, inner_maximization=InnerMaximization(num_steps=2))
    assert spec.evaluation is not None
    shared = spec.evaluation.model_copy(update={"batch_size": 180, "shards": 2})
    spec = spec.model_copy(update={"evaluation": shared})
    answer = httpx2.post(f"{hosts.url}/api/v1/jobs", json=spec.model_dump(mode="json"))
    job_id = answer.json()["id"]
    # What it logs is written once a second.
    until(lambda: hosts.saved(job_id) and log_of(hosts, job_id))
    hosts.kill("first")
    start(hosts, server, "second", "third")
    trained = hosts.wait_for(job_id)
    assert (trained.attempt, trained.lost_leases) == (2, 1)
    (follow_up,) = trained.children
    evaluated = hosts.wait_for(follow_up.id)

    log = httpx2.get(f"{hosts.url}/api/v1/jobs/{job_id}/log").text
    assert "--- attempt 1," in log
    assert "resumed after epoch" in log.partition("--- attempt 2,")[2]
    with hosts.database.reading() as session:
        shards = session.scalars(select(Job).where(Job.parent_id == evaluated.id, Job.kind == JobKind.SHARD)).all()
    assert len(shards) == 2
    (entry,) = httpx2.get(f"{hosts.url}/api/v1/leaderboards/digits/Linf-0.9").json()["entries"]
    model = httpx2.get(f"{hosts.url}/api/v1/models/{entry['weights_id']}").json()
    certificate, weights = tmp_path / "certificate.safetensors", tmp_path / "weights.safetensors"
    for path, address in (
        (certificate, f"entries/{entry['id']}/certificate"),
        (weights, f"weights/{model['weights_sha256']}/file"),
    ):
        path.write_bytes(httpx2.get(f"{hosts.url}/api/v1/{address}").raise_for_status().content)
    verify(certificate, weights, datasets_dir=NO_FILES)
    assert httpx2.get(f"{hosts.url}/entries/{entry['id']}/points").status_code == 200
    assert files(hosts, "api") == {"fetched"}
    assert files(hosts, "relay") == files(hosts, "second") == files(hosts, "third") == set()


@pytest.mark.long
def test_a_store_that_is_away_delays_jobs_and_fails_none(hosts: Cluster, server: ObjectServer) -> None:
    start(hosts, server, "api", "relay", "worker")
    spec = tiny_train_spec(epochs=40, inner_maximization=InnerMaximization(num_steps=2), evaluation=None)
    running = hosts.send(spec)
    until(lambda: hosts.job(running).state is JobState.RUNNING)
    server.stop()
    until(lambda: "waiting: the artifact store cannot be used" in log_of(hosts, running))
    until(lambda: httpx2.get(f"{hosts.url}/readyz").status_code == 503)
    assert httpx2.get(f"{hosts.url}/readyz").json()["parts"]["store"] == "cannot be used: EndpointConnectionError"
    sent = httpx2.post(
        f"{hosts.url}/api/v1/weights",
        content=save({"weight": np.zeros(3, np.float32)}),
        headers={"Content-Type": "application/octet-stream"},
    )
    assert (sent.status_code, sent.json()["code"], sent.headers["retry-after"]) == (503, "store_away", "5")
    # This server comes back empty, and the job needs nothing of what it had.
    server.start()
    server.make_bucket("gklbench")
    assert hosts.wait_for(running).attempt == 1
    assert hosts.wait_for(hosts.send(spec)).attempt == 1
