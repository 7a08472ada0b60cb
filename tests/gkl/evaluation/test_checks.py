"""Each flag on a model that deserves it, none on an honest one, and none that outlives its evaluation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gkl.evaluation import Blocks, Measurement, measure
from gkl.evaluation.checks import square_improved
from gkl.outcome import AttackOutcome
from gkl.spec import Evaluation, ThreatModel
from tests.gkl.evaluation.models import (
    Around,
    BatchCentered,
    LogSoftmax,
    Noisy,
    NoisyOffGrid,
    Purifying,
    Quantized,
    Softmax,
    StubbornDropout,
)
from tests.gkl.evaluation.test_measurement import quick, test_digits


def looked_at(model: nn.Module, evaluation: Evaluation | None = None, **more: Any) -> Measurement:
    evaluation = evaluation or quick(attacks=("apgd-ce",), epsilon=0.9)
    return measure(model.eval(), test_digits(12), evaluation, num_classes=10, **more)


def names(verdict: Measurement) -> set[str]:
    return {flag.name for flag in verdict.flags}


@pytest.mark.parametrize(
    ("defense", "expected"),
    [
        (Noisy, {"randomized"}),
        (NoisyOffGrid, {"randomized_when_perturbed"}),
        (Softmax, {"probabilities_as_logits"}),
        (LogSoftmax, {"log_probabilities_as_logits"}),
        (Purifying, {"dynamic"}),
        (Quantized, {"zero_gradients"}),
        (BatchCentered, {"batch_dependent"}),
        (StubbornDropout, {"training_mode", "batch_dependent"}),
    ],
)
def test_each_defense_gets_its_flags(robust_model: nn.Module, defense: type[Around], expected: set[str]) -> None:
    verdict = looked_at(defense(robust_model))
    # Nearby images also get identical answers from grey levels: at about the limit of that check, so either is right.
    also = {"coarse"} if defense is Quantized else set()
    assert names(verdict) - also == expected
    for flag in verdict.flags:
        assert flag.sentence[0].isupper()
        assert flag.sentence.endswith(".")


def test_an_honest_model_gets_none(robust_model: nn.Module, plain_model: nn.Module) -> None:
    # The standard protocol's own test sees that it adds none on a robust network.
    attacks = {"protocol": "custom", "attacks": ("apgd-ce", "square")}
    for model in (robust_model, plain_model):
        verdict = looked_at(model, Evaluation(threat_model=ThreatModel(epsilon=0.2), **attacks))  # type: ignore[arg-type]
        assert verdict.flags == []
        assert not verdict.answers_vary


def test_a_dynamic_model_taints_no_other(robust_model: nn.Module) -> None:
    """AutoAttack counts in a global variable that nothing resets."""
    assert names(looked_at(Purifying(robust_model))) == {"dynamic"}
    assert names(looked_at(robust_model)) == set()


def test_a_profiler_that_was_set_stays(robust_model: nn.Module) -> None:
    def profiler(*_: Any) -> None:
        pass

    sys.setprofile(profiler)
    try:
        looked_at(robust_model)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)


def test_a_model_that_came_in_training_mode_is_flagged_and_evaluated_in_evaluation_mode(
    robust_model: nn.Module,
) -> None:
    expected = looked_at(robust_model)
    robust_model.train()
    verdict = measure(robust_model, test_digits(12), quick(attacks=("apgd-ce",), epsilon=0.9), num_classes=10)
    assert names(verdict) == {"training_mode"}
    assert torch.equal(verdict.prediction, expected.prediction)


def test_the_protocol_for_randomized_models_says_so_without_a_flag(robust_model: nn.Module) -> None:
    verdict = looked_at(Noisy(robust_model), Evaluation(protocol="rand", threat_model=ThreatModel(epsilon=0.9)))
    assert verdict.answers_vary
    assert "randomized" not in names(verdict)


def test_a_single_point_can_be_checked(robust_model: nn.Module) -> None:
    data = test_digits(1)
    verdict = measure(BatchCentered(robust_model).eval(), data, quick(attacks=("apgd-ce",)), num_classes=10)
    assert "batch_dependent" in names(verdict)
    assert names(measure(robust_model, data, quick(attacks=("apgd-ce",)), num_classes=10)) == set()


def test_flags_are_kept_with_the_finished_parts(robust_model: nn.Module, tmp_path: Path) -> None:
    first = looked_at(Noisy(robust_model), blocks=Blocks(tmp_path, {}))
    again = looked_at(Noisy(robust_model), blocks=Blocks(tmp_path, {}))
    assert again.flags == first.flags != []


@pytest.mark.parametrize(
    ("order", "broken", "of", "expected"),
    [
        (["APGD-CE", "Square"], 3, 1000, True),
        (["APGD-CE", "Square"], 2, 1000, False),
        (["APGD-CE", "Square"], 2, 12, True),
        (["APGD-CE", "Square"], 1, 12, False),
        # AutoAttack's own check sees nothing in version plus, where others come after Square.
        (["APGD-CE", "Square", "APGD-T"], 3, 1000, True),
        (["Square"], 500, 1000, False),
        (["Square", "APGD-CE"], 500, 1000, False),
    ],
)
def test_square_is_judged_by_what_it_alone_broke(order: list[str], broken: int, of: int, expected: bool) -> None:
    attacks = [
        AttackOutcome(attack=name, points=of, broken=broken if name == "Square" else 0, seconds=0) for name in order
    ]
    assert (square_improved(attacks, of) is not None) == expected
