"""The one judge of adversarial examples, against rules written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gkl.attacks.classifier import NO_CLASS, predicted_classes
from gkl.evaluation.judge import IS_RIGHT, Judged, compare_with_record, judge
from gkl.spec import ThreatModel

BALL = ThreatModel(norm="Linf", epsilon=0.1)
LABEL, OTHER = 3, 5


def judged(pixel: float, prediction: int, clean: float = 0.05) -> tuple[Judged, torch.Tensor]:
    """Of one image that is its clean one in all pixels but one."""
    image = torch.full((1, 1, 2, 2), clean)
    adversarial = image.clone()
    adversarial[0, 0, 1, 1] = pixel
    return judge(adversarial, image, torch.tensor([LABEL]), torch.tensor([prediction]), BALL), adversarial


@pytest.mark.parametrize(
    ("pixel", "prediction", "fault"),
    [
        (0.15, OTHER, None),
        (0.0, OTHER, None),
        (0.15, NO_CLASS, None),
        (0.15, LABEL, IS_RIGHT),
        (0.16, OTHER, "its adversarial image is 0.11 away in Linf, further than epsilon 0.1"),
        (-0.01, OTHER, "its adversarial image has values from -0.01 to 0.05, outside [0, 1]"),
        (math.nan, OTHER, "its adversarial image has values that are no numbers"),
        (math.inf, OTHER, "its adversarial image has values that are no numbers"),
        # The first rule that it fails is the one that is named.
        (0.16, LABEL, "its adversarial image is 0.11 away in Linf, further than epsilon 0.1"),
    ],
)
def test_an_example_breaks_a_point_or_has_one_fault(pixel: float, prediction: int, fault: str | None) -> None:
    found, adversarial = judged(pixel, prediction)
    assert found.breaks.tolist() == [fault is None]
    expected = [] if fault is None else [(0, fault)]
    assert found.faults(adversarial, BALL, must_fool=True) == expected
    # Of one that is only replayed, being right is no fault.
    expected = [each for each in expected if each[1] != IS_RIGHT]
    assert found.faults(adversarial, BALL, must_fool=False) == expected


def test_examples_judged_in_parts_are_those_judged_at_once() -> None:
    assert len(Judged.joined([]).breaks) == 0
    parts = [judged(0.15, OTHER)[0], judged(0.15, LABEL)[0], judged(0.9, OTHER)[0]]
    joined = Judged.joined(parts)
    assert joined.breaks.tolist() == [True, False, False]
    assert joined.fools.tolist() == [True, False, True]
    assert joined.chosen(joined.fools).allowed.tolist() == [True, False]


def test_an_answer_with_nan_is_no_class_wherever_the_nan_is() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [math.nan, 1.0, 0.0], [2.0, 1.0, math.nan], [math.inf, 1.0, 0.0]])
    assert predicted_classes(logits).tolist() == [0, NO_CLASS, NO_CLASS, 0]


def test_only_rounding_excuses_another_answer_than_the_recorded_one() -> None:
    close = 4 * (1 - 2.0**-20)
    logits = torch.tensor([[4.0, close, 0.0], [4.0, 3.9, 0.0], [math.nan, 1.0, 0.0], [4.0, 1.0, 0.0]])
    compared = compare_with_record(logits, torch.tensor([1, 1, 1, NO_CLASS]))
    assert compared.found.tolist() == [0, 0, NO_CLASS, 0]
    assert compared.in_favour.tolist() == [1, 0, NO_CLASS, 0]
    assert compared.borderline == 1
    assert compared.differences("clean") == [
        (1, "the model answers 0 to its clean image, and its certificate says 1"),
        (2, "the model answers -1 to its clean image, and its certificate says 1"),
        (3, "the model answers 0 to its clean image, and its certificate says -1"),
    ]
