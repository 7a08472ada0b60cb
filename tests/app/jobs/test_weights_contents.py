"""What is said of weights and an architecture when a job is sent, before any run reads them."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.numpy import load, save
from sqlalchemy import update

from app.db.database import Database
from app.db.tables import Upload
from app.jobs import weights_contents
from app.web.forms import inputs
from app.web.submit_form import first_values
from gkl.models import build_model
from gkl.spec import EvaluateSpec
from tests.app.boards.test_robustbench import on_one
from tests.app.routes.test_api import assert_problem
from tests.app.web.test_forms import FORM, sent
from tests.weights import weights_of

SMALL = weights_of("small_cnn", "digits")


def upload(client: TestClient, content: bytes) -> str:
    answer = client.post("/api/v1/weights", content=content)
    assert answer.status_code == 201, answer.text
    sha256: str = answer.json()["sha256"]
    return sha256


def spec(weights: str, architecture: str = "small_cnn", **changes: Any) -> dict[str, Any]:
    return {
        "kind": "evaluate",
        "name": "Sent",
        "dataset": "digits",
        "architecture": architecture,
        "weights": weights,
        "evaluation": {"threat_model": {"norm": "Linf", "epsilon": 0.2}},
    } | changes


def changed(**tensors: np.ndarray[Any, Any] | None) -> bytes:
    both: dict[str, Any] = load(SMALL) | tensors
    return save({name: tensor for name, tensor in both.items() if tensor is not None})


def test_weights_of_the_network_are_taken(client: TestClient) -> None:
    assert client.post("/api/v1/jobs", json=spec(upload(client, SMALL))).status_code == 202
    wrapped = upload(client, weights_of("small_cnn", "digits", seed=1, prefix="module."))
    assert client.post("/api/v1/jobs", json=spec(wrapped)).status_code == 202


@on_one
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed(**{"classifier.2.bias": None}), "he file lacks the tensor 'classifier.2.bias'"),
        (
            changed(**{"features.0.weight": np.zeros((8, 1, 3, 3), np.float32)}),
            "tensor 'features.0.weight' in the file is F32 (8, 1, 3, 3), but the architecture has torch.float32 "
            "(16, 1, 3, 3) there",
        ),
        (
            changed(head=np.zeros((2, 2), np.float32)),
            "he file has a tensor 'head' that the architecture does not have",
        ),
    ],
)
def test_what_no_run_would_load_is_refused_when_it_is_sent(client: TestClient, content: bytes, said: str) -> None:
    assert_problem(client.post("/api/v1/jobs", json=spec(upload(client, content))), 422, said)
    assert client.get("/api/v1/jobs").json()["jobs"] == []


@on_one
def test_the_architecture_that_was_meant_is_named(client: TestClient) -> None:
    refused = client.post("/api/v1/jobs", json=spec(upload(client, SMALL), "tiny_cnn"))
    assert_problem(refused, 422, "It fits small_cnn")


@on_one
def test_a_key_that_names_nothing_is_refused(client: TestClient) -> None:
    refused = client.post("/api/v1/jobs", json=spec(upload(client, SMALL), weights_key="ema"))
    assert_problem(refused, 422, "holds no network of this architecture at weights_key 'ema'")


@on_one
def test_what_the_service_cannot_read_is_left_to_the_run(client: TestClient, database: Database) -> None:
    """A state dict of torch.save, and what an earlier version has kept."""
    written = io.BytesIO()
    torch.save(build_model("tiny_cnn", "digits").state_dict(), written)
    assert client.post("/api/v1/jobs", json=spec(upload(client, written.getvalue()))).status_code == 202
    earlier = upload(client, SMALL)
    with database.writing() as session:
        session.execute(update(Upload).where(Upload.sha256 == earlier).values(contents=None))
    assert client.post("/api/v1/jobs", json=spec(earlier, "tiny_cnn")).status_code == 202


def test_a_description_that_takes_too_much_room_is_not_kept(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    path.write_bytes(SMALL)
    packed = weights_contents.read(path)
    assert packed is not None
    assert weights_contents.problem(packed, EvaluateSpec.model_validate(spec("0" * 64))) is None
    monkeypatch.setattr(weights_contents, "_MOST_BYTES", len(packed) - 1)
    assert weights_contents.read(path) is None


@on_one
def test_the_form_says_so_while_it_is_filled_in(client: TestClient) -> None:
    weights = upload(client, SMALL)
    values = first_values("evaluate") | {"name": "a", "weights": weights, "architecture": "tiny_cnn"}
    form = sent(inputs(EvaluateSpec, values, {}))
    for action, status in (("check", 200), ("send", 422)):
        answer = client.post("/submit/evaluate", data=form | {"action": action}, headers=FORM)
        assert answer.status_code == status
        assert re.search(r'id="e-weights"><p class="wrong">[^<]*It fits small_cnn', answer.text), action
