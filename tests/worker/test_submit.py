"""`gklbench submit` as a script uses it, against a service whose worker runs what is sent."""

from __future__ import annotations

import json

import pytest

from tests.commands import run
from tests.specs import tiny_train_spec

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_a_script_waits_and_reads_what_came_of_it(url: str) -> None:
    spec = tiny_train_spec(epochs=1)
    done = run("submit", "-", "--json", "--wait", "--url", url, stdin=spec.model_dump_json())
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["kind"], job["state"]) == ("train", "succeeded")
    (evaluation,) = job["followers"]
    assert (evaluation["kind"], evaluation["state"], evaluation["model_id"]) == ("evaluate", "succeeded", 1)
    # What cannot be done is an exit status, and what there is to know of it is in the JSON too.
    impossible = spec.model_copy(update={"dataset": "cifar10", "architecture": "resnet_18", "evaluation": None})
    failed = run("submit", "-", "--json", "--wait", "--url", url, stdin=impossible.model_dump_json())
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["failure"]["code"] == "invalid_input"
    told = run("submit", "-", "--wait", "--url", url, stdin=impossible.model_dump_json())
    assert (told.returncode, "Job 4 is failed" in told.stdout) == (1, True)
    queued = run("submit", "-", "--json", "--url", url, stdin=spec.model_dump_json())
    assert (queued.returncode, json.loads(queued.stdout)["state"]) == (0, "queued")
    both = run("submit", "-", "--follow", "--json", "--url", url, stdin=spec.model_dump_json())
    assert "use --wait" in both.stderr
