"""A service whose disk is full: a real, tiny one, a tmpfs in a mount namespace of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

OWN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
_SERVICE = """
import json, subprocess, sys
from pathlib import Path

directory = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)], check=True)

from app.db import migrations
from app.db.database import Database
from app.main import create_app
from app.core.settings import Settings
from tests.local import local_client
from tests.specs import tiny_train_spec

settings = Settings(data_dir=directory, broker_url=sys.argv[2], min_free_bytes=0)
migrations.upgrade(Database(settings.effective_database_url))
app = create_app(settings)
said = []


def look(client):
    ready = client.get("/readyz")
    sent = client.post("/api/v1/jobs", json=tiny_train_spec().model_dump(mode="json"))
    weights = client.post("/api/v1/weights", content=bytes(100_000))
    metrics = client.get("/metrics").text
    gauges = {name: f"gklbench_{name}_up 1.0" in metrics for name in ("database", "store")}
    parts = ready.json()["parts"]
    jobs = client.get("/api/v1/jobs").status_code
    said.append([ready.status_code, parts, sent.status_code, weights.status_code, jobs, gauges])


with local_client(app, raise_server_exceptions=False) as client:
    look(client)
    full = directory / "full"
    try:
        with full.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
    except OSError:
        pass
    import time
    time.sleep(1.1)
    look(client)
    full.unlink()
    time.sleep(1.1)
    look(client)
print(json.dumps(said))
"""


@pytest.mark.system
def test_it_is_not_ready_and_reads_on_and_is_ready_again(tmp_path: Path, broker_url: str) -> None:
    if subprocess.run([*OWN_NAMESPACE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this kernel lets nobody make a mount namespace, and so no disk to fill")
    done = subprocess.run(
        [*OWN_NAMESPACE, sys.executable, "-c", _SERVICE, str(tmp_path), broker_url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, full, after = json.loads(done.stdout)
    # What is sent is no file of weights, which is told once it has come.
    well = [200, {"database": "ok", "broker": "ok", "store": "ok"}, 202, 422, 200, {"database": True, "store": True}]
    assert before == well
    status, parts, sent, weights, jobs, gauges = full
    assert (status, jobs) == (503, 200)
    assert parts["database"].startswith("cannot be used"), parts
    assert parts["store"].startswith("cannot be written"), parts
    assert (sent, weights) == (503, 507)
    assert gauges == {"database": False, "store": False}
    assert after == well
