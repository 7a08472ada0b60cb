"""Spans, where they are asked for. OpenTelemetry has one provider for a process, so each of these is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.settings import Settings

CODE = """
import json, sys
from threading import Event
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from app.core import tracing
from app.store import ArtifactStore
from app.main import create_app
from app.http.service import Service
import pytest

from app.core.settings import Settings
from gkl.recipes.adversarial import digits
from worker.tasks import Worker

kept = InMemorySpanExporter()
trace.set_tracer_provider(tracing.provider(SimpleSpanProcessor(kept)))
settings = Settings()
service = Service.from_settings(settings)
told = []
for changes in ({"tracing": True}, {}):
    app = create_app(settings.model_copy(update=changes))
    client = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
    client.get("/healthz")
    client.post("/api/v1/jobs?submitter=secret", json=digits().model_dump(mode="json") | {"dataset": "cifar10"})
    Worker(settings, service.database, service.store, "here", Event()).run_next()
    told.append({span.name: dict(span.attributes) for span in kept.get_finished_spans()})
    kept.clear()
sys.stdout.write(json.dumps(told))
"""


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.long
def test_requests_and_runs_have_spans_without_what_was_sent(settings: Settings) -> None:
    environment = {**os.environ, **settings.environment()}
    told = subprocess.run([sys.executable, "-c", CODE], env=environment, check=True, capture_output=True, text=True)
    found, by_default = json.loads(told.stdout)
    assert found.keys() == {"POST /api/v1/jobs", "run job"}
    request = found["POST /api/v1/jobs"]
    assert (request["http.route"], request["http.response.status_code"]) == ("/api/v1/jobs", 202)
    assert "secret" not in str(found)
    assert found["run job"] == {"job_id": 1, "attempt": 1, "ending": "failed"}
    assert by_default.keys() == {"run job"}, "a provider that others set up gets what a worker tells"


@pytest.mark.long
def test_without_its_packages_it_says_what_to_install(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "GKLBENCH_TRACING": "true", "GKLBENCH_DATA_DIR": str(tmp_path)}
    code = "import sys; sys.modules['opentelemetry.exporter'] = None; sys.argv[1:] = ['relay']\n"
    code += "from app.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True)
    assert (done.returncode, "pip install 'gklbench[otel]'" in done.stderr) == (1, True), done.stderr
