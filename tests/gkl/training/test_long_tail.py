"""Trainings with an imbalance: what they record, what they measure, and that they resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gkl.data import load_test, load_train, unit_range
from gkl.data.imbalance import class_counts, imbalanced
from gkl.errors import InvalidInput, Stopped
from gkl.models import load_model
from gkl.outcome import Event, Progress, TrainOutcome
from gkl.recipes.adversarial import digits_ce
from gkl.run_context import RunContext
from gkl.spec import TrainSpec
from gkl.training import train
from gkl.training.long_tail import long_tail_accuracy
from tests.specs import NO_FILES

pytestmark = pytest.mark.system


def short(**changes: Any) -> TrainSpec:
    base = digits_ce().model_dump(mode="json") | {"evaluation": None, "architecture": "tiny_cnn", "augmentation": None}
    small = {"epochs": 3, "batch_size": 64, "selection": {"num_images": 100}, "imbalance": {"factor": 20, "seed": 1}}
    return TrainSpec.model_validate(base | small | changes)


def run(spec: TrainSpec, directory: Path, should_stop: Callable[[], bool] = lambda: False) -> TrainOutcome:
    return train(spec, RunContext(directory=directory, datasets_dir=NO_FILES, should_stop=should_stop, device="cpu"))


def stop_at(call: int) -> Callable[[], bool]:
    calls = iter(range(call))
    return lambda: next(calls, None) is None


def test_the_outcome_has_class_sizes_and_the_test_accuracy_of_the_result(tmp_path: Path) -> None:
    outcome = run(short(), tmp_path)
    spec = short()
    assert spec.imbalance is not None
    data = imbalanced(load_train("digits", NO_FILES), spec.imbalance, num_classes=10, num_held_out=100)
    counts = outcome.class_counts
    assert counts is not None
    assert counts == class_counts(data.labels[100:], 10)
    there = class_counts(load_train("digits", NO_FILES).labels[100:], 10)
    assert list(counts) == list(map(min, spec.imbalance.class_sizes(max(there), 10), there))
    assert outcome.manifest.dataset_sha256 == data.sha256() != load_train("digits", NO_FILES).sha256()
    test = load_test("digits", NO_FILES)
    model = load_model("tiny_cnn", "digits", tmp_path / outcome.weights, None).eval()
    with torch.no_grad():
        is_right = model(unit_range(test.images)).argmax(1) == test.labels
    of_class = [float(is_right[test.labels == label].double().mean()) for label in range(10)]
    groups: dict[str, list[float]] = {"many": [], "medium": [], "few": []}
    for count, accuracy in zip(counts, of_class, strict=True):
        groups["many" if count > 100 else "medium" if count >= 20 else "few"].append(accuracy)
    expected = {name: pytest.approx(sum(found) / len(found)) for name, found in groups.items()}
    assert outcome.test_accuracy is not None
    assert outcome.test_accuracy.model_dump() == {"top1": pytest.approx(float(is_right.double().mean())), **expected}


def test_without_an_imbalance_nothing_is_measured(tmp_path: Path) -> None:
    outcome = run(short(imbalance=None, epochs=1), tmp_path)
    assert (outcome.class_counts, outcome.test_accuracy) == (None, None)
    assert TrainOutcome.model_validate_json(outcome.model_dump_json()) == outcome


# 9 steps and 2 batches of held-out images are an epoch; the last calls come from the test images.
@pytest.mark.parametrize("call", [3, 15, 35])
def test_a_resumed_run_equals_an_uninterrupted_one(call: int, tmp_path: Path) -> None:
    whole = run(short(), tmp_path / "whole")
    with pytest.raises(Stopped):
        run(short(), tmp_path / "stopped", stop_at(call))
    resumed = run(short(), tmp_path / "stopped")
    ignored = {"seconds"}
    assert resumed.model_dump(exclude=ignored) == whole.model_dump(exclude=ignored)


def test_progress_tells_of_the_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gkl.training.trainer._REPORT_SECONDS", 0)
    events: list[Event] = []
    train(short(epochs=1), RunContext(directory=tmp_path, datasets_dir=NO_FILES, report=events.append, device="cpu"))
    tests = [e for e in events if isinstance(e, Progress) and e.stage == "test"]
    assert [e.detail for e in tests][-1] == "360 of 360 test images"
    assert {e.fraction for e in tests} == {1.0}


def test_another_seed_of_the_imbalance_is_another_spec(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(short(), tmp_path, stop_at(15))
    with pytest.raises(InvalidInput, match=r"differs in imbalance.seed \(1, now 2\)"):
        run(short(imbalance={"factor": 20, "seed": 2}), tmp_path)


def test_groups_are_by_training_images_and_classes_without_test_images_in_none() -> None:
    counts = [500, 101, 100, 20, 19, 1, 150]
    tested = torch.tensor([10, 10, 10, 10, 10, 10, 0])
    correct = torch.tensor([9, 7, 6, 4, 3, 1, 0])
    found = long_tail_accuracy(correct, tested, counts)
    assert found.model_dump() == pytest.approx({"top1": 0.5, "many": 0.8, "medium": 0.5, "few": 0.2})
    only = long_tail_accuracy(correct[:2], tested[:2], counts[:2])
    assert (only.medium, only.few) == (None, None)
