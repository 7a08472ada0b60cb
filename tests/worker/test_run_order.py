"""What a supervisor writes to its runner, and what the runner reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from gkl.errors import Stopped
from gkl.recipes.adversarial import digits
from gkl.spec import ExternalSpec, ReportSpec, RunSpec, TransferSpec
from worker.runner import RunOrder

FOLLOW_UP = digits().follow_up("0" * 64)
assert FOLLOW_UP is not None
CHECKED = {"name": "a", "dataset": "digits", "architecture": "tiny_cnn"}
SPECS: list[RunSpec] = [
    digits(),
    FOLLOW_UP,
    ExternalSpec(**CHECKED, weights="0" * 64, examples="1" * 64),
    ReportSpec(**CHECKED, certificate="2" * 64),
    TransferSpec(**CHECKED, weights="0" * 64, source="3" * 64, source_name="b"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_an_order_arrives_as_it_was_given(spec: RunSpec) -> None:
    order = RunOrder(
        spec=spec,
        shard_index=2,
        directory=Path("/run"),
        datasets_dir=Path("/data"),
        models_dir=Path("/models"),
        weights="weights",
        converted="converted.safetensors",
        others=(Path("/store/a"),),
        checkpoint_seconds=30,
    )
    line = order.model_dump_json()
    assert "\n" not in line
    assert RunOrder.model_validate(json.loads(line)) == order
    # The spec is written as an API writes it.
    assert json.loads(line)["spec"] == spec.model_dump(mode="json")


def test_an_order_without_files_needs_but_a_place() -> None:
    spec = digits().model_dump(mode="json")
    order = RunOrder.model_validate({"spec": spec, "directory": "/run", "datasets_dir": "/data"})
    assert (order.weights, order.shard_index, order.others) == (None, None, ())
    assert order.in_directory(None) is None
    assert order.in_directory("weights") == Path("/run/weights")
    with pytest.raises(ValidationError, match="datasets_dir"):
        RunOrder.model_validate({"spec": spec, "directory": "/run"})


def test_a_context_tells_and_stops_as_the_order_says() -> None:
    sent: list[object] = []
    context = RunOrder(spec=digits(), directory=Path("/run"), datasets_dir=Path("/data")).context(
        sent.append, lambda: bool(sent)
    )
    context.tell(0.5, "loading the model")
    assert [event.model_dump(include={"stage", "fraction"}) for event in sent] == [  # type: ignore[attr-defined]
        {"stage": "loading the model", "fraction": 0.5}
    ]
    with pytest.raises(Stopped):
        context.tell(0.6, "clean images")
    assert len(sent) == 1
