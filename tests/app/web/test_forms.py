"""Forms generated from the specs, and what a browser sends of them."""

from __future__ import annotations

from typing import Any

import pytest

from app.web.forms import Input, advanced, basic, inputs, parse
from app.web.submit_form import SPECS
from gkl.recipes import RECIPES
from gkl.spec import TrainSpec

FORM = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "text/html"}


def sent(made: list[Input]) -> dict[str, str]:
    """What a browser sends of a form."""
    values: dict[str, str] = {}
    for each in made:
        if each.kind == "checkbox":
            values |= {each.name: "true"} if each.value else {}
        elif each.kind != "group":
            values[each.name] = each.value
        values |= sent(each.inputs)
    return values


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_through_the_form_unchanged(name: str) -> None:
    spec = RECIPES[name]()
    made = inputs(type(spec), spec.model_dump(mode="json"), {})
    assert type(spec).model_validate(parse(type(spec), sent(made))) == spec


def test_every_field_of_the_specs_has_an_input() -> None:
    def paths(schema: dict[str, Any], part: dict[str, Any]) -> set[str]:
        return set(part["properties"]) - {"kind"}

    for spec in SPECS.values():
        schema = spec.model_json_schema()
        assert {each.name for each in inputs(spec, {}, {})} == paths(schema, schema)


def test_the_variant_that_is_chosen_has_its_own_fields() -> None:
    values = RECIPES["digits"]().model_dump(mode="json") | {"averaging": {"kind": "step"}}
    names = set(sent(inputs(TrainSpec, values, {})))
    assert {"averaging", "averaging.tau", "averaging.warmup_fraction"} <= names
    got = parse(TrainSpec, sent(inputs(TrainSpec, values, {})) | {"averaging": "none"})
    assert "averaging" not in got


def test_what_is_folded_says_how_much_of_it_is_set() -> None:
    spec = RECIPES["digits"]()
    made = inputs(TrainSpec, spec.model_dump(mode="json"), {})
    assert [each.name for each in basic(made)] == [
        *("name", "dataset", "architecture", "threat_model", "objective", "epochs", "evaluation")
    ]
    assert {each.name for each in [*basic(made), *advanced(made)]} == set(TrainSpec.model_fields) - {"kind"}
    changed = {"label_smoothing": 0.1, "averaging": {"kind": "epoch"}, "seed": 0}
    plain = spec.model_copy(update={"inner_maximization": type(spec.inner_maximization)()}).model_dump(mode="json")
    both = [inputs(TrainSpec, plain | more, {}) for more in ({}, changed)]
    set_before, set_now = ({each.name for each in advanced(one) if each.is_changed} for one in both)
    assert set_now - set_before == {"label_smoothing", "averaging"} - set_before
    assert "inner_maximization" not in set_before
