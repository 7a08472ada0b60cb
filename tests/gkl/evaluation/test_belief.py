"""Checks of whether attacks see a network as it is: honest networks raise nothing, and each kind of lie is told."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.belief_networks import HONEST, LIARS, Case, Wrapped, digits, plain_base
from gkl.catalog import Norm
from gkl.data import ImageSet, load_test, unit_range
from gkl.errors import InvalidInput
from gkl.evaluation import Measurement, measure
from gkl.spec import Evaluation, ThreatModel
from tests.specs import NO_FILES

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("short_attacks")]

POINTS = 60
_BEYOND = {"repair", "transfer", "near_cliff"}


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return plain_base()


def judged(case: Case) -> Measurement:
    """By one attack: the checks need no more."""
    threat_model = ThreatModel(norm=case.norm, epsilon=case.epsilon)
    evaluation = Evaluation(protocol="custom", attacks=("apgd-ce",), threat_model=threat_model, batch_size=POINTS)
    data = case.prepare(digits(POINTS))
    return measure(case.make().eval(), data, evaluation, num_classes=case.num_classes)


# All but those trained for long, and the two whose flags are deserved: `log_probabilities_as_logits` of a log-softmax,
# and `wrong_gradients` of activations in 4 bits.
_SILENT = (
    "ReLU",
    "SiLU",
    "GELU",
    "max-pool",
    "BatchNorm and LayerNorm",
    "attention",
    "linear",
    "deep and narrow",
    "100 classes",
    "naturally trained",
    "adversarially trained",
    "ReLU, L2",
    "ReLU, L1",
    "normalization inside",
    "logits times 100",
    "logits times .01",
    "weights rounded to bfloat16",
    "weights rounded to 8 bits",
    "activations in 8 bits, straight-through",
    "run in bfloat16",
    "run in float64",
)


@pytest.mark.parametrize("kind", _SILENT)
def test_an_honest_network_raises_nothing(kind: str) -> None:
    verdict = judged(HONEST[kind])
    assert (verdict.flags, verdict.unrankable) == ([], None)
    assert {check.name for check in verdict.checks if not check.ran} == _BEYOND


@pytest.mark.parametrize(("norm", "epsilon"), [("L2", 0.1), ("L1", 2.0), ("Linf", 9e-5)])
def test_other_budgets_raise_nothing(norm: Norm, epsilon: float) -> None:
    assert judged(Case(plain_base, norm, epsilon)).flags == []


_TOLD = {
    "forged weights, naturally trained": "wrong_gradients",
    "large offset, 2^22": "coarse",
    "reversed gradient": "wrong_gradients",
    "random gradient": "wrong_gradients",
    "gradient of the neighbour in the batch": "wrong_gradients",
    "gradient drowned in a branch": "wrong_gradients",
    "one-hot and a little tanh": "cliff",
    "input in 9 levels": "zero_gradients",
    "input in 5 levels, straight-through": "wrong_gradients",
    "remembers after 40 calls": "remembers",
    "other answers with a gradient": "two_faces",
    "other answers in float64": "coarse",
    "noise, with an offset": "randomized",
}


@pytest.mark.parametrize("kind", _TOLD)
def test_a_network_that_lies_is_told_and_has_no_rank(kind: str) -> None:
    verdict = judged(LIARS[kind])
    assert _TOLD[kind] in {raised.name for raised in verdict.flags}
    assert verdict.unrankable is not None


def test_what_cannot_be_checked_is_said(plain: nn.Module) -> None:
    class OnlyFloat32(Wrapped):
        def forward(self, images: Tensor) -> Tensor:
            if images.dtype != torch.float32:
                raise TypeError("float32 only")
            return super().forward(images)

    verdict = judged(Case(lambda: OnlyFloat32(plain)))
    missing = {check.name: check.note for check in verdict.checks if not check.ran}
    assert {"wrong_gradients", "coarse", "cliff"} <= missing.keys()
    assert "float32 only" in missing["wrong_gradients"]
    assert verdict.unrankable is None


def test_the_points_are_drawn_anew_for_each_run() -> None:
    assert judged(Case(plain_base)).checks_seed != judged(Case(plain_base)).checks_seed


# --- what a model may answer -------------------------------------------------------------------------------------


def _writes(images: Tensor) -> Tensor:
    images.mul_(0.5)
    return images


def _writes_by_numpy(images: Tensor) -> Tensor:
    images.detach().numpy()[...] = 0
    return images


def _raises(_: Tensor) -> Tensor:
    raise KeyError("weights")


STRANGE: dict[str, tuple[Callable[[Tensor], object], Callable[[Tensor], Tensor], str]] = {
    "tuple": (lambda z: (z, z), lambda x: x, "a tuple of 2"),
    "dict": (lambda z: {"logits": z}, lambda x: x, "a dict with the keys 'logits'"),
    "None": (lambda z: None, lambda x: x, "returned None"),
    "NumPy": (lambda z: z.detach().numpy(), lambda x: x, "numpy.ndarray"),
    "another batch": (lambda z: z[:1], lambda x: x, r"shape \(1, 10\)"),
    "other classes": (lambda z: z[:, :5], lambda x: x, r"shape \(60, 5\)"),
    "whole numbers": (lambda z: z.long(), lambda x: x, "torch.int64"),
    "writes": (lambda z: z, _writes, "writes into the images"),
    "writes by NumPy": (lambda z: z, _writes_by_numpy, "writes into the images"),
    "raises": (lambda z: z, _raises, "raised KeyError"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_answer_is_refused_and_the_caller_is_left_alone(kind: str, plain: nn.Module) -> None:
    after, before, said = STRANGE[kind]
    model = Wrapped(copy.deepcopy(plain), after, before).train()  # type: ignore[arg-type]
    test = load_test("digits", NO_FILES).first(POINTS)
    images = unit_range(test.images).clone()
    kept, state = images.clone(), torch.get_rng_state()
    evaluation = Evaluation(protocol="custom", attacks=("apgd-ce",), threat_model=ThreatModel(epsilon=0.1))
    with pytest.raises(InvalidInput, match=said):
        measure(model, ImageSet(images, test.labels), evaluation, num_classes=10)
    assert torch.equal(images, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


@pytest.mark.parametrize("protocol", ["standard", "plus", "rand", "clean"])
@pytest.mark.parametrize("right", [True, False])
def test_one_point_of_a_constant_model_has_a_verdict(protocol: str, right: bool) -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.eye(10)[0 if right else 1] + 0 * images.flatten(1).sum(1, keepdim=True)

    data = ImageSet(torch.from_numpy(np.full((1, 1, 8, 8), 0.5, dtype=np.float32)), torch.zeros(1, dtype=torch.int64))
    threat_model = None if protocol == "clean" else ThreatModel(epsilon=0.1)
    evaluation = Evaluation.model_validate({"protocol": protocol, "threat_model": threat_model})
    verdict = measure(Constant(), data, evaluation, num_classes=10)
    assert (verdict.clean_correct, verdict.robust_correct) == (int(right), int(right))
