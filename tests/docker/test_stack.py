"""The compose file's services, run: their commands, environments, order, health checks and signals, as processes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx2
import pytest

from gkl.answers import JobState, JobView
from gkl.client import Client
from gkl.spec import TrainSpec
from tests.cluster import until
from tests.docker.compose_file import ENV_EXAMPLE, MAIN, WORKER_ENV_EXAMPLE, WORKERS, secrets_filled_in
from tests.docker.stack import Stack
from tests.specs import tiny_train_spec

# What .env would have, so that nobody waits for what is announced or looked for in seconds.
QUICK = {
    **{"GKLBENCH_LEASE_SECONDS": "20", "GKLBENCH_HEARTBEAT_SECONDS": "1", "GKLBENCH_RELAY_SECONDS": "0.5"},
    **{"GKLBENCH_POLL_SECONDS": "0.5", "GKLBENCH_MIN_FREE_BYTES": "0", "GKLBENCH_API_PROCESSES": "1"},
}
VARIABLES = secrets_filled_in(ENV_EXAMPLE) | QUICK


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Stack(MAIN, VARIABLES, {"cpu"}) as stack:
        try:
            yield stack
        except BaseException:
            print(stack.logs())  # noqa: T201 - shown by pytest with a failure
            raise


def make_token(stack: Stack) -> str:
    """With the command of docs/deployment.md, in a container of the API's."""
    stack.up("migrate")
    said = stack.run("api", "token", "create", "--name", "Ada", "--scopes", "admin")
    match = re.search(r"gklb_[\w-]+", said)
    assert match is not None, said
    return match[0]


def run_to_the_end(client: Client, spec: TrainSpec) -> JobView:
    """A training and the evaluation that follows it; returns the evaluation."""
    trained = wait_for(client, client.submit(spec).id)
    (evaluation,) = trained.child_ids
    return wait_for(client, evaluation)


def wait_for(client: Client, job_id: int) -> JobView:
    until(lambda: client.job(job_id).state not in (JobState.QUEUED, JobState.RUNNING), seconds=90)
    job = client.job(job_id)
    assert job.state is JobState.SUCCEEDED, job.failure
    return job


def board(stack: Stack) -> str:
    response = httpx2.get(f"http://{stack.address('api', 8000)}/leaderboards/digits/Linf-0.9")
    assert response.status_code == 200
    return response.text


@pytest.mark.timeout(600)
@pytest.mark.long
def test_a_deployment_serves_and_survives_its_restarts(stack: Stack) -> None:
    token = make_token(stack)
    stack.up(*stack.services)
    for name in stack.processes:
        stack.wait_until_healthy(name)
    url = f"http://{stack.address('api', 8000)}"
    assert httpx2.get(f"{url}/readyz").status_code == 200
    assert httpx2.post(f"{url}/api/v1/jobs", json={}).status_code == 401
    with Client(url, token) as client:
        run_to_the_end(client, tiny_train_spec(name="First", epochs=1))
        assert '">First</a>' in board(stack)

        for name in ("postgres", "redis", "relay", "api", "worker-cpu"):
            stack.restart(name)
        run_to_the_end(client, tiny_train_spec(name="Second", epochs=1, seed=1))
        shown = board(stack)
        assert '">First</a>' in shown
        assert '">Second</a>' in shown

        # A worker that is told to stop while it runs a job hands it back, at no cost.
        job = client.submit(tiny_train_spec(name="Third", epochs=400, evaluation=None))
        until(lambda: client.job(job.id).progress is not None)
        assert stack.stop("worker-cpu") == 0, stack.log("worker-cpu")
        assert client.job(job.id).state is JobState.QUEUED
        stack.up("worker-cpu")
        until(lambda: client.job(job.id).attempt >= 2)
        client.cancel(job.id)


@pytest.mark.long
def test_each_health_check_sees_that_its_service_is_gone(stack: Stack) -> None:
    """One that cannot fail would be worse than none: what waits for it would begin too early."""
    make_token(stack)
    stack.up("api", "relay", "worker-cpu")
    for name in ("api", "relay", "worker-cpu", "redis", "postgres"):
        stack.wait_until_healthy(name)
        stack.stop(name)
        until(lambda name=name: stack.problem(name) is not None, seconds=30)


def test_workers_of_another_host_need_database_broker_and_store_only() -> None:
    settings = VARIABLES | {
        "GKLBENCH_STORE_URL": "s3://gklbench",
        "AWS_ENDPOINT_URL": "http://store:8333",
    }
    with Stack(MAIN, settings, {"store"}) as service:
        token = make_token(service)
        service.up("api", "relay")
        there = secrets_filled_in(WORKER_ENV_EXAMPLE) | QUICK
        for port in (("postgres", 5432), ("redis", 6379), ("store", 8333)):
            there = {k: v.replace(f"10.0.0.1:{port[1]}", service.address(*port)) for k, v in there.items()}
        with (
            Stack(WORKERS, there, {"cpu"}) as elsewhere,
            Client(f"http://{service.address('api', 8000)}", token) as client,
        ):
            elsewhere.up("worker-cpu")
            elsewhere.wait_until_healthy("worker-cpu")
            evaluation = run_to_the_end(client, tiny_train_spec(name="Elsewhere", epochs=1, seed=2))
            assert '">Elsewhere</a>' in board(service)
            # The certificate is in the store, from which the API, which shares no folder with the worker, reads it.
            assert evaluation.model_id is not None
            (measured,) = client.model(evaluation.model_id).evaluations
            points = httpx2.get(f"{client.url}/api/v1/evaluations/{measured.id}/points")
            assert points.status_code == 200, points.text
            assert any(point["adversarial_prediction"] is not None for point in points.json())
