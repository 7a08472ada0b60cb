"""A training in one call: what comes back, resumed, interrupted, and what is refused."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gkl
from gkl.errors import InvalidInput
from gkl.evaluation import verify
from gkl.formats.tensor_files import load_tensors
from gkl.library import training as library
from gkl.recipes.adversarial import digits
from gkl.run_context import RunContext
from gkl.spec import Evaluation, ThreatModel, TrainSpec
from gkl.training import train as run_training
from tests.specs import NO_FILES

SMALL: dict[str, Any] = {"architecture": "tiny_cnn", "epochs": 2, "evaluation": None, "progress": False}


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def seeded() -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)


@pytest.mark.parametrize("spec", ["digits", digits(), digits().model_dump(), digits().model_dump(mode="json")])
def test_a_recipe_a_spec_and_a_dictionary_are_the_same(spec: Any, tmp_path: Path) -> None:
    asked = library._spec(spec, {"epochs": 3, "evaluation": Evaluation(threat_model=ThreatModel(epsilon=0.1))}, None)
    assert asked == digits().model_copy(
        update={"epochs": 3, "evaluation": Evaluation(threat_model=ThreatModel(epsilon=0.1))}
    )


def test_what_comes_back(tmp_path: Path) -> None:
    seeded()
    expected = drawn()
    seeded()
    found = gkl.train("digits", tmp_path / "ours", **SMALL)
    assert drawn() == expected
    spec = digits().model_copy(update={"architecture": "tiny_cnn", "epochs": 2, "evaluation": None})
    run_training(spec, RunContext(directory=tmp_path / "theirs", datasets_dir=NO_FILES))
    assert found.spec == spec
    assert found.weights.read_bytes() == (tmp_path / "theirs" / "weights.safetensors").read_bytes()
    tensors, _ = load_tensors(found.weights)
    state = found.model.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name].cpu(), tensors[name]) for name in state)
    assert not found.model.training
    assert found.evaluation is None
    last = found.history[-1]
    assert [each.epoch for each in found.history] == [1, 2]
    assert repr(found) == (
        f"Training: GKL SmallCNN, 2 epochs of digits, at the end clean {100 * last.clean_accuracy:.2f} % and "
        f"adversarial {100 * last.adversarial_accuracy:.2f} % of its training images; weights in {found.weights}"
    )
    assert repr(found.history).startswith("History: 2 epochs, loss ")
    frame = found.history.to_frame()
    assert frame.index.tolist() == [1, 2]
    assert frame.clean_accuracy.tolist() == [each.clean_accuracy for each in found.history]
    assert {"loss", "adversarial_accuracy", "learning_rate", "loss_natural", "loss_ce", "loss_wmse"} <= set(
        frame.columns
    )
    assert "<p>Training: " in found._repr_html_()


def test_plain_training_and_a_history_of_an_earlier_version(tmp_path: Path) -> None:
    found = gkl.train("digits-ce", tmp_path, **SMALL)
    (last,) = found.history[1:]
    assert (last.adversarial_accuracy, last.epsilon, last.parts) == (None, None, {})
    shown = f"at the end clean {100 * last.clean_accuracy:.2f} % of its training images;"
    assert shown in repr(found)
    frame = found.history.to_frame()
    assert frame.clean_accuracy.tolist() == [each.clean_accuracy for each in found.history]
    assert frame.adversarial_accuracy.isna().all()
    # As version 0.1 wrote its lines.
    flat = [{**each.model_dump(exclude={"metrics"}), **each.metrics, "parts": {"kl": 0.5}} for each in found.history]
    (tmp_path / "history.jsonl").write_text("\n".join(json.dumps(line) for line in flat), encoding="utf-8")
    again = gkl.train("digits-ce", tmp_path, **SMALL)
    assert [each.metrics for each in again.history] == [{**e.metrics, "loss_kl": 0.5} for e in found.history]
    with pytest.raises(InvalidInput, match="the objective 'ce' trains without an adversary; leave out threat_model,"):
        gkl.train("digits", tmp_path / "other", objective={"loss": "ce"}, **SMALL)


def test_the_same_call_again_trains_nothing(tmp_path: Path) -> None:
    first = gkl.train("digits", tmp_path, **SMALL)
    before = (tmp_path / "history.jsonl").read_text()
    again = gkl.train("digits", tmp_path, **SMALL)
    assert list(again.history) == list(first.history)
    assert again.outcome.manifest.weights_sha256 == first.outcome.manifest.weights_sha256
    assert (tmp_path / "history.jsonl").read_text() == before
    with pytest.raises(InvalidInput, match="epochs"):
        gkl.train("digits", tmp_path, **SMALL | {"epochs": 3})


@pytest.fixture
def pressed_here() -> Iterator[None]:
    """Ctrl-C reaches this process, also where a shell has had it ignored, as for what runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pressed_here")
def test_ctrl_c_saves_and_the_same_call_goes_on(tmp_path: Path) -> None:
    uninterrupted = gkl.train("digits", tmp_path / "whole", **SMALL | {"epochs": 4})

    def press_after_an_epoch() -> None:
        while not (tmp_path / "part" / "history.jsonl").exists():
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press_after_an_epoch)
    presser.start()
    seeded()
    expected = drawn()
    seeded()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped; repeat the call to continue from"):
        gkl.train("digits", tmp_path / "part", **SMALL | {"epochs": 4})
    assert drawn() == expected
    assert signal.getsignal(signal.SIGINT) is handler
    presser.join()
    assert not (tmp_path / "part" / "weights.safetensors").exists()
    resumed = gkl.train("digits", tmp_path / "part", **SMALL | {"epochs": 4})
    assert resumed.weights.read_bytes() == uninterrupted.weights.read_bytes()
    assert [each.model_dump(exclude={"seconds"}) for each in resumed.history] == [
        each.model_dump(exclude={"seconds"}) for each in uninterrupted.history
    ]


def test_in_another_thread_ctrl_c_is_left_alone(tmp_path: Path) -> None:
    handler, found = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: found.append(gkl.train("digits", tmp_path, **SMALL)))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(found) == 1


@pytest.mark.usefixtures("pressed_here")
def test_pressed_twice_it_interrupts_at_once() -> None:
    with library._asked_to_stop() as should_stop:
        assert not should_stop()
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_line_that_was_cut_off_is_told_again(tmp_path: Path) -> None:
    first = gkl.train("digits", tmp_path, **SMALL)
    path = tmp_path / "history.jsonl"
    path.write_text(path.read_text()[:-40])
    for checkpoint in tmp_path.glob("checkpoint*"):
        checkpoint.unlink()
    again = gkl.train("digits", tmp_path, **SMALL)
    assert [each.loss for each in again.history] == [each.loss for each in first.history]


@pytest.mark.usefixtures("short_attacks")
def test_a_verdict_follows_where_the_spec_says_so(tmp_path: Path) -> None:
    evaluation = {
        "protocol": "custom",
        "attacks": ["apgd-ce"],
        "threat_model": {"epsilon": 0.1},
        "num_points": 30,
        "batch_size": 30,
    }
    found = gkl.train("digits", tmp_path, **SMALL | {"evaluation": evaluation})
    verdict = found.evaluation
    assert isinstance(verdict, gkl.Verdict)
    assert (verdict.model, verdict.num_points) == ("GKL SmallCNN", 30)
    assert repr(found).endswith(f"\n{verdict!r}")
    assert "<table>" in found._repr_html_()
    direct = gkl.evaluate(
        found.model, "digits", epsilon=0.1, protocol="custom", attacks=["apgd-ce"], num_points=30, batch_size=30
    )
    assert direct.measurement.broken_by.tolist() == verdict.measurement.broken_by.tolist()
    # Unlike one of a network that only its owner has, its certificate can be checked against the weights.
    certificate = verdict.save_certificate(tmp_path / "certificate.safetensors")
    checked = verify(certificate, found.weights, datasets_dir=NO_FILES)
    assert (checked.holds, checked.network_asked) == (True, True)
    again = gkl.train("digits", tmp_path, **SMALL | {"evaluation": evaluation})
    assert again.evaluation is not None
    assert again.evaluation.measurement.broken_by.tolist() == verdict.measurement.broken_by.tolist()


def test_a_bar_shows_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gkl.train("digits", tmp_path, **SMALL | {"progress": True})
    shown = capsys.readouterr().err
    assert "epoch 2 of 2" in shown
    assert re.search(r"clean \d+\.\d %, adversarial \d+\.\d %", shown)


@pytest.mark.parametrize(
    ("spec", "changes", "says"),
    [
        ("digit", {}, "unknown recipe 'digit'; did you mean 'digits' or"),
        ("digits", {"epoch": 3}, "epoch: unknown field; did you mean epochs?"),
        ("digits", {"epochs": 0}, "epochs: input should be greater than or equal to 1."),
        ("digits", {"objective": {"loss": "ikl", "ce_weight": -1}}, "objective.ce_weight: input should be greater"),
        ("digits", {"schedule": {"kind": "piecewise", "milestones": [3, 2]}}, "schedule: milestones must rise"),
        ("digits", {"dataset": "digit"}, "dataset: unknown dataset 'digit'; did you mean 'digits'?"),
        ("digits", {"threat_model": {"epsilon": 8}}, "threat_model: epsilon 8 is wider than the pixel range"),
        ("digits", {"kind": "evaluate"}, "kind: input should be 'train'."),
        ({"name": "x"}, {}, "dataset: field required. And 2 more."),
        (7, {}, "the spec is a int; give a recipe's name, a TrainSpec or DistillSpec, or one as a dictionary"),
        ("cifar10", {"evaluation": {"protocol": "corruptions"}}, "evaluation: corrupted images are files"),
        ("cifar10", {"datasets_dir": NO_FILES}, str(NO_FILES / "cifar10")),
        ("digits", {"device": "tpu"}, "tpu"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_field(spec: Any, changes: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refused:
        gkl.train(spec, tmp_path / "out", **changes)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_specs_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        gkl.train("digits", tmp_path / "out", epochs=-1)
    assert not (tmp_path / "out").exists()


def test_without_pandas_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = library.History([])
    assert repr(history) == "History: no epoch"
    assert len(history.to_frame()) == 0
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InvalidInput, match="pip install pandas"):
        history.to_frame()


def test_a_spec_that_is_changed_is_a_new_one() -> None:
    spec: TrainSpec = digits()
    assert library._spec(spec, {}, None) is spec
    assert library._spec(spec, {"epochs": 1}, None).epochs == 1
    assert spec.epochs == 50
