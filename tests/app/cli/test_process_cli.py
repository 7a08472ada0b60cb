"""The processes of a deployment and what watches over them, as containers run them."""

from __future__ import annotations

from pathlib import Path

import httpx2
import psutil
import pytest

from tests.cluster import Cluster, until
from tests.commands import run


def gklbench(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    done = run(*arguments, environment={"PATH": "/usr/bin:/bin", "COLUMNS": "300"} | environment)
    return done.returncode, (done.stdout + done.stderr).strip()


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, None),
        ({"GKLBENCH_DATABASE_URL": "postgresql://gklbench:s3cr3t@postgres/gklbench"}, None),
        (
            {"GKLBENCH_DATABASE_URL": "postgresql://gklbench:changethis@postgres/gklbench"},
            "DATABASE_URL holds the placeholder",
        ),
        ({"GKLBENCH_BROKER_URL": "redis://:changethis@redis:6379/0"}, "BROKER_URL holds the placeholder"),
        ({"GKLBENCH_DATABASE_URL": "postgresql://gklbench:@postgres/gklbench"}, "DATABASE_URL has an empty password"),
        ({"GKLBENCH_DATABASE_URL": "nonsense"}, "DATABASE_URL is not a valid address"),
        (
            {"GKLBENCH_STORE_URL": "s3://bucket", "AWS_SECRET_ACCESS_KEY": "changethis"},
            "AWS_SECRET_ACCESS_KEY is empty or",
        ),
        ({"GKLBENCH_STORE_URL": "s3://bucket", "AWS_SECRET_ACCESS_KEY": "a secret"}, None),
        ({"AWS_SECRET_ACCESS_KEY": "changethis"}, "AWS_SECRET_ACCESS_KEY is empty or"),
        ({"GKLBENCH_STORE_URL": "s3://bucket", "AWS_ENDPOINT_URL": "store:8333"}, "AWS_ENDPOINT_URL must begin with"),
        ({"GKLBENCH_STORE_URL": "https://b"}, "GKLBENCH_STORE_URL must be s3://bucket"),
        ({"GKLBENCH_API_PROCESSES": "0"}, "GKLBENCH_API_PROCESSES: "),
    ],
)
def test_settings_are_checked_before_anything_starts(environment: dict[str, str], says: str | None) -> None:
    status, said = gklbench(environment, "check-settings")
    if says is None:
        assert (status, said) == (0, "The settings are valid.")
    else:
        assert status == 1
        assert said.startswith("gklbench: GKLBENCH_") or says.startswith("AWS_")
        assert says in said
        assert "s3cr3t" not in said


@pytest.mark.system
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_each_part_says_whether_it_lives(database_url: str, tmp_path: Path) -> None:
    """And several processes serve one port, count together, and end together."""
    with Cluster(tmp_path, database_url, api_processes=2) as cluster:
        environment = cluster.settings.environment()

        def health(part: str) -> tuple[int, str]:
            return gklbench(environment, "health", part)

        assert health("api") == (1, "gklbench: the API does not answer (ConnectError)")
        assert health("worker")[1].startswith("gklbench: no worker of ")
        assert health("relay") == (1, "gklbench: no relay is running")
        cluster.start("api", "relay", "worker")
        for part in ("api", "relay", "worker"):
            until(lambda part=part: health(part) == (0, f"The {part} lives."))  # type: ignore[misc]

        children = psutil.Process(cluster.processes["api"].pid).children()
        serving = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        assert len(serving) == 2
        for _ in range(30):
            # Each on a connection of its own, which either of them may take.
            assert httpx2.get(f"{cluster.url}/api/v1/recipes").status_code == 200
        metrics = httpx2.get(f"{cluster.url}/metrics").text
        labels = 'method="GET",route="/api/v1/recipes",status="200"'
        assert f"gklbench_http_request_duration_seconds_count{{{labels}}} 30.0" in metrics
        assert "INFO app.http.access: GET /api/v1/recipes 200" in cluster.log("api").read_text()
        cluster.kill("api")
        assert not psutil.wait_procs(serving, timeout=10)[1], "none lives on when the first is killed"
        cluster.broker.stop()
        assert health("relay") == (1, "gklbench: the broker does not answer")
