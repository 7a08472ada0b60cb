"""The form of a job: its values and errors, links that fill it in, and the commands that send the same job."""

from __future__ import annotations

import pytest

from app.web.forms import inputs, parse
from app.web.submit_form import SPECS, Kind, commands, first_values, form_of, prefilled
from gkl.recipes import RECIPES
from gkl.spec import JOB_SPEC, TrainSpec
from tests.app.web.test_forms import sent


def test_what_is_no_number_reaches_the_spec_and_is_refused_there() -> None:
    values = parse(TrainSpec, sent(inputs(TrainSpec, first_values("train"), {})) | {"epochs": "many"})
    assert values["epochs"] == "many"
    form = form_of("train", values)
    (wrong,) = [each for each in form.inputs if each.errors]
    assert (wrong.name, wrong.value) == ("epochs", "many")
    assert form.body is None


@pytest.mark.parametrize("kind", SPECS)
def test_the_commands_say_the_same_job(kind: Kind) -> None:
    values = first_values(kind) | {"name": "It's"}
    if kind == "evaluate":
        values["weights"] = "0" * 64
    if kind == "distill":
        values["teacher"]["weights"] = "0" * 64
    form = form_of(kind, values, submitter="Ada L")
    assert form.body is not None
    assert JOB_SPEC.validate_json(form.body) == SPECS[kind].model_validate(values)
    said = commands(form, "http://host")
    assert said is not None
    texts = dict(said)
    assert "--submitter 'Ada L'" in texts["gklbench"]
    assert "http://host/api/v1/jobs?submitter=Ada%20L" in texts["curl"]
    assert JOB_SPEC.validate_json(texts["JSON"]) == SPECS[kind].model_validate(values)


def test_an_error_about_the_whole_spec_is_told_too() -> None:
    form = form_of("train", first_values("train") | {"selection": {"num_images": 9999}})
    (said,) = form.errors
    assert "leaves none of the 1437 training images" in said


def test_a_link_sets_fields_and_what_follows_from_them() -> None:
    found = prefilled("train", first_values("train"), {"dataset": "cifar10", "epochs": "3"})
    spec = TrainSpec.model_validate(found)
    assert (spec.dataset, spec.epochs, spec.threat_model.epsilon) == ("cifar10", 3, 8 / 255)
    # What it names itself stays, also where it is what was usual before.
    typed = prefilled("train", first_values("train"), {"dataset": "cifar10", "threat_model.epsilon": "0.2"})
    assert (typed["threat_model"]["epsilon"], typed["evaluation"]["threat_model"]["epsilon"]) == (0.2, "8/255")
    assert prefilled("train", first_values("train"), {"nothing": "1"}) == prefilled("train", first_values("train"), {})
    assert TrainSpec.model_validate(prefilled("train", first_values("train"), {})) == RECIPES["digits"]()
