"""Spans, where they are asked for. OpenTelemetry has one provider for a process, so each of these is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings

CODE = """
import json, sys
from threading import Event
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from app import tracing
from app.artifacts import ArtifactStore
from app.main import create_app
from app.service import Service
import pytest

from app.settings import Settings
from gkl.recipes import digits
from worker.tasks import Worker

kept = InMemorySpanExporter()
trace.set_tracer_provider(tracing.provider(SimpleSpanProcessor(kept)))
settings = Settings()
client = TestClient(create_app(settings), base_url="http://127.0.0.1", client=("127.0.0.1", 1))
client.get("/healthz")
client.post("/api/v1/jobs?submitter=secret", json=digits().model_dump(mode="json") | {"dataset": "cifar10"})
service = Service.from_settings(settings)
Worker(settings, service.database, service.store, "here", Event()).run_next()
sys.stdout.write(json.dumps([[span.name, dict(span.attributes)] for span in kept.get_finished_spans()]))
"""


def spans(settings: Settings) -> dict[str, dict[str, Any]]:
    environment = {**os.environ, **settings.environment()}
    told = subprocess.run([sys.executable, "-c", CODE], env=environment, check=True, capture_output=True, text=True)
    return dict(json.loads(told.stdout))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_requests_and_runs_have_spans_without_what_was_sent(settings: Settings) -> None:
    found = spans(settings.model_copy(update={"tracing": True}))
    assert found.keys() == {"POST /api/v1/jobs", "run job"}
    request = found["POST /api/v1/jobs"]
    assert (request["http.route"], request["http.response.status_code"]) == ("/api/v1/jobs", 202)
    assert "secret" not in str(found)
    assert found["run job"] == {"job_id": 1, "attempt": 1, "ending": "failed"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_request_has_a_span_by_default(settings: Settings) -> None:
    assert spans(settings).keys() == {"run job"}, "a provider that others set up gets what a worker tells"


def test_without_its_packages_it_says_what_to_install(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "GKLBENCH_TRACING": "true", "GKLBENCH_DATA_DIR": str(tmp_path)}
    code = "import sys; sys.modules['opentelemetry.exporter'] = None; sys.argv[1:] = ['relay']\n"
    code += "from app.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True)
    assert (done.returncode, "pip install 'gklbench[otel]'" in done.stderr) == (1, True), done.stderr
