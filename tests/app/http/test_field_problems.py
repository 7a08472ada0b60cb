"""An error stands beside its field, however a spec is sent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.web.forms import inputs
from app.web.submit_form import first_values
from gkl.spec import TrainSpec
from tests.app.routes.test_api import SPEC, post
from tests.app.routes.test_api import assert_problem as problem_of
from tests.app.web.test_forms import FORM, sent
from tests.commands import run

CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"schedule": {"kind": "piecewise", "milestones": [2, 1]}}, "schedule.milestones", "greater than or equal to 2"),
    ({"objective": {"loss": "ikl", "ce_weight": -1}}, "objective.ce_weight", "greater than or equal to 0"),
    ({"objective": {"loss": "trades", "kl_weight": -1}}, "objective.kl_weight", "greater than or equal to 0"),
    ({"augmentation": {"kind": "cutout", "size": 0}}, "augmentation.size", "greater than or equal to 1"),
    ({"averaging": {"kind": "step", "tau": 1}}, "averaging.tau", "less than 1"),
    ({"inner_maximization": {"start_noise": 3}}, "inner_maximization.start_noise", "or input should be 'uniform'"),
]
cases = pytest.mark.parametrize(("change", "field", "says"), CASES, ids=[field for _, field, _ in CASES])


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_in_an_answer_of_the_api(client: TestClient) -> None:
    for change, field, says in CASES:
        problem = problem_of(post(client, SPEC | change), 422, says)
        (error,) = problem.errors
        assert error.location.removesuffix(".1") == f"body.{field}"
    (error,) = problem_of(post(client, SPEC | {"train": 1, "gkl": 2}), 422, "unknown field").errors[:1]
    assert error.location == "body.train"
    (error,) = problem_of(post(client, SPEC | {"epoch": 1}), 422, "did you mean epochs?").errors
    assert error.location == "body.epoch"
    broken = client.post("/api/v1/jobs", content='{"kind": ', headers={"Content-Type": "application/json"})
    problem_of(broken, 422, "the body is not JSON")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_in_the_form(client: TestClient) -> None:
    for change, field, says in CASES:
        form = sent(inputs(TrainSpec, first_values("train") | change, {}))
        page = client.post("/submit/train", data=form, headers=FORM)
        assert page.status_code == 422
        found = re.search(rf'id="e-{re.escape(field)}"><p class="wrong">([^<]*)<', page.text)
        assert found is not None, f"{field}: nothing stands beside it"
        assert says in found[1].replace("&#39;", "'")
        assert page.text.count('class="wrong"') == 1


@cases
def test_on_the_command_line(change: dict[str, Any], field: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC | change))
    done = run("train", path, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert re.search(rf"^  {re.escape(field)}(\.1)?: ", done.stderr, flags=re.MULTILINE), done.stderr
    assert says in done.stderr
