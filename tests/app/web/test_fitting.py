"""What a form changes for the choice of a data set or a norm."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.web.fitting import Drawn, fitted, fitting_architectures
from app.web.forms import inputs
from app.web.submit_form import first_values
from gkl.spec import TrainSpec
from tests.app.boards.test_robustbench import on_one
from tests.app.web.test_forms import FORM, sent
from tests.app.web.test_pages import get

DIGITS = Drawn.of(first_values("train"))


def values(**changes: Any) -> dict[str, Any]:
    return first_values("train") | changes


def test_the_usual_budget_and_an_architecture_follow_the_data_set() -> None:
    found, told = fitted(values(dataset="cifar10"), DIGITS)
    assert found["threat_model"]["epsilon"] == found["evaluation"]["threat_model"]["epsilon"] == 8 / 255
    assert found["architecture"] in fitting_architectures("cifar10")
    assert told[:2] == [
        "threat_model.epsilon is now 8/255, the default",
        "evaluation.threat_model.epsilon is now 8/255, the default",
    ]
    assert TrainSpec.model_validate(found).dataset == "cifar10"


def test_it_follows_the_norm_too() -> None:
    found, told = fitted(values(threat_model={"norm": "L2", "epsilon": "0.2"}), DIGITS)
    assert (found["threat_model"]["epsilon"], len(told)) == (0.8, 1)


@pytest.mark.parametrize("epsilon", ["0.1", 0.3, "nonsense", None])
def test_what_somebody_typed_stays(epsilon: object) -> None:
    found, told = fitted(values(dataset="cifar10", threat_model={"norm": "Linf", "epsilon": epsilon}), DIGITS)
    assert found["threat_model"]["epsilon"] == epsilon
    assert not any(each.startswith("threat_model") for each in told)


def test_nothing_changes_where_nothing_was_chosen() -> None:
    assert fitted(values(), DIGITS) == (values(), [])
    assert fitted(values(dataset="unknown"), DIGITS) == (values(dataset="unknown"), [])
    assert Drawn.read(str(DIGITS)) == DIGITS
    # A page of an earlier version says nothing of it.
    of_cifar = values(dataset="digits", architecture="wrn_28_10")
    assert fitted(of_cifar, Drawn.read("")) == (of_cifar, [])


def test_without_an_adversary_its_settings_go_and_with_one_they_come_back() -> None:
    assert values()["inner_maximization"]["num_steps"] == 5, "not the default"
    natural, told = fitted(values(objective={"loss": "ce"}, epsilon_ramp=False), DIGITS)
    assert told == [
        "threat_model, inner_maximization, epsilon_ramp left out, since 'ce' trains without an adversary",
    ]
    spec = TrainSpec.model_validate(natural)
    assert (spec.threat_model, spec.objective.loss) == (None, "ce")
    assert fitted(spec.model_dump(mode="json"), DIGITS)[1] == [], "a second look changes nothing"
    back, told = fitted(natural | {"objective": {"loss": "gkl"}}, DIGITS)
    assert told == ["threat_model is now Linf, epsilon 0.2, the usual one"]
    assert TrainSpec.model_validate(back).threat_model == TrainSpec.model_validate(values()).threat_model


@on_one
def test_the_form_sends_a_training_without_an_adversary(client: TestClient) -> None:
    chosen = sent(inputs(TrainSpec, first_values("train"), {})) | {"objective": "ce", "selection": "on"}
    redrawn = client.post("/submit/train", data=chosen | {"action": "update"}, headers=FORM)
    assert "Changed to fit: threat_model, inner_maximization left out" in redrawn.text
    assert re.search(r'name="threat_model"[^>]*>(<option[^>]*>\w+</option>)*<option selected>none<', redrawn.text)
    spec = first_values("train") | {"threat_model": None, "inner_maximization": {}, "objective": {"loss": "ce"}}
    form = sent(inputs(TrainSpec, spec, {}))
    answer = client.post("/submit/train", data=form, headers=FORM, follow_redirects=False)
    assert answer.headers["location"] == "/jobs/1"
    stored = client.get("/api/v1/jobs/1").json()["spec"]
    assert (stored["threat_model"], stored["objective"]) == (None, {"loss": "ce"})
    assert client.get("/submit/train?objective=ce").text.count('class="wrong"') == 0
    # Its page and the form made from it.
    assert get(client, "/jobs/1")
    assert "<option selected>ce<" in get(client, "/submit/train?job=1")


@on_one
def test_the_form_shows_what_it_changed_before_it_is_sent(client: TestClient) -> None:
    page = get(client, "/submit/train")
    drawn = re.search(r'name="drawn_for" value="([^"]+)"', page)
    assert drawn is not None
    assert 'value="cifar10/Linf/' not in page, "only architectures that fit digits"
    form = sent(inputs(TrainSpec, first_values("train"), {})) | {"drawn_for": drawn[1], "dataset": "cifar10"}
    redrawn = client.post("/submit/train", data=form | {"action": "update"}, headers=FORM)
    assert redrawn.status_code == 200
    assert re.search(r'name="threat_model.epsilon" value="8/255"', redrawn.text)
    assert "Changed to fit: threat_model.epsilon is now 8/255" in redrawn.text
    assert "RobustBench&#39;s zoo: CIFAR-10, Linf" in redrawn.text
    # Without scripts nobody has seen it yet.
    unseen = client.post("/submit/train", data=form | {"action": "send"}, headers=FORM)
    assert (unseen.status_code, "Check it, and send again" in unseen.text) == (422, True)
    assert client.get("/api/v1/jobs").json()["jobs"] == []
