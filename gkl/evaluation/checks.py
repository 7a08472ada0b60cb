"""Reasons not to trust an evaluation, as data.

These are the five conditions of which AutoAttack warns, and four more. AutoAttack prints its warnings and continues.
One of them depends on a global variable, so that one model affects all later models of a process. Here each reason is
a `Flag` of the evaluation that it belongs to.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from gkl.attacks.autoattack import dlr_loss
from gkl.attacks.classifier import Classifier
from gkl.outcome import AttackOutcome, Flag

_PASSES = 5
# Two answers to an image, each scaled to length 1, count as different if they are farther apart than this.
_SAME_ANSWER = 1e-4
_SUM_TOLERANCE = 1e-5
# Square must lower the accuracy by more than this share of all points, which is AutoAttack's own condition, and break
# more than this many points: Square is random, so one point of a few dozen means nothing.
_SQUARE_SHARE, _SQUARE_POINTS = 0.002, 1
# Share of the correctly classified points whose gradient may be zero.
_ZERO_SHARE = 0.01


@torch.no_grad()
def answers_differ(classifier: Classifier, x: Tensor, y: Tensor) -> float | None:
    """Call the model five times; returns the largest distance between two answers if they differ, else None.

    This is AutoAttack's check for randomized models: answers differ if the number of correct ones changes, or if two
    scaled answers are more than 1e-4 apart.
    """
    scaled, correct = [], set()
    for _ in range(_PASSES):
        logits = classifier(x)
        correct.add(int((logits.argmax(1) == y).sum()))
        scaled.append(_scaled(logits))
    distance = max(_distance(a, b) for i, a in enumerate(scaled) for b in scaled[:i])
    return distance if len(correct) > 1 or distance > _SAME_ANSWER else None


def randomized(distance: float) -> Flag:
    return Flag(
        name="randomized",
        sentence=f"The model answers the same images differently each time (distance {distance:.2g}). The attacks see "
        "only one of its answers; evaluate it with the protocol 'rand', which averages over them.",
        value=distance,
    )


def randomized_when_perturbed(distance: float) -> Flag:
    return Flag(
        name="randomized_when_perturbed",
        sentence=f"The model answers perturbed images differently each time (distance {distance:.2g}), though not the "
        "clean ones. Gradients at one such answer mislead the attacks; evaluate it with the protocol 'rand'.",
        value=distance,
    )


def probabilities(logits: Tensor) -> Flag | None:
    """Flag logits (B, C) that are probabilities, by AutoAttack's test, or logarithms of probabilities."""
    if (
        logits.max() < 1 + _SUM_TOLERANCE
        and logits.min() > -_SUM_TOLERANCE
        and ((logits.sum(1) - 1).abs() < _SUM_TOLERANCE).all()
    ):
        return Flag(
            name="probabilities_as_logits",
            sentence="The model returns probabilities where logits belong: their gradients vanish where it is sure, "
            "so the attacks are weaker than they should be. Leave out the softmax.",
        )
    if logits.max() < _SUM_TOLERANCE and (logits.logsumexp(1).abs() < _SUM_TOLERANCE).all():
        return Flag(
            name="log_probabilities_as_logits",
            sentence="The model returns log-probabilities where logits belong. What the softmax rounded to zero or "
            "cut off is lost to the attacks. Leave out the log-softmax.",
        )
    return None


@torch.no_grad()
def batch_dependence(classifier: Classifier, x: Tensor) -> Flag | None:
    """Flag a model whose answer to an image depends on the other images in the batch."""
    half = max(1, len(x) // 2)
    # A single image is put into a batch with its negative.
    together = _scaled(classifier(x if len(x) > 1 else torch.cat([x, 1 - x])))
    distance = _distance(together[:half], _scaled(classifier(x[:half])))
    # Half precision rounds differently in batches of another size.
    if distance <= max(_SAME_ANSWER, 8 * torch.finfo(classifier.dtype).eps):
        return None
    return Flag(
        name="batch_dependent",
        sentence=f"The answer to an image depends on the images beside it in the batch (distance {distance:.2g}), so "
        "the accuracy depends on the batch size. Normalize with fixed statistics.",
        value=distance,
    )


def dynamic(classifier: Classifier, x: Tensor) -> Flag | None:
    """Flag a model whose forward pass computes gradients, as a defense that optimizes at test time does."""
    watched = {
        torch.autograd.grad.__code__,
        torch.autograd.backward.__code__,
        torch.Tensor.backward.__code__,
    }
    called = False

    def look(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal called
        called = called or (event == "call" and frame.f_code in watched)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        # Not under no_grad, where such a defense could not compute gradients.
        classifier(x)
    finally:
        sys.setprofile(before)
    if not called:
        return None
    return Flag(
        name="dynamic",
        sentence="The model computes gradients while it answers: it changes at test time. AutoAttack is not made for "
        "such defenses and overestimates them; an attack that knows this one is needed.",
    )


def zero_gradient_points(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor | None:
    """Which images (B, *) have an all-zero gradient of the DLR loss: bool (B,); None if there is no gradient."""
    x = x.clone().requires_grad_(True)
    with torch.enable_grad():
        loss = dlr_loss(classifier(x), y).sum()
        if not loss.requires_grad:
            # An operation in the model has cut the graph.
            return None
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    if gradient is None:
        return None
    is_zero: Tensor = (gradient.flatten(1) == 0).all(1).cpu()
    return is_zero


def zero_gradients(points: int, of: int) -> Flag | None:
    """Flag a model whose gradient is zero at `points` of its `of` correctly classified points, if that is over 1 %."""
    # A single such point among thousands must not cost a network its rank.
    if points <= _ZERO_SHARE * of:
        return None
    return Flag(
        name="zero_gradients",
        sentence=f"At {points} of {of} correctly classified points ({points / of:.1%}) the gradient of the loss is "
        "exactly zero, so attacks that follow gradients find no direction there; only Square can.",
        value=points / of,
    )


def square_improved(attacks: Sequence[AttackOutcome], num_points: int) -> Flag | None:
    """Flag an evaluation in which Square, which uses no gradients, broke more points than chance explains."""
    for position, attack in enumerate(attacks):
        share = attack.broken / num_points
        if attack.name == "square" and position > 0 and attack.broken > max(_SQUARE_POINTS, _SQUARE_SHARE * num_points):
            return Flag(
                name="square_improved",
                sentence=f"Square, which uses no gradients, lowered the accuracy by {100 * share:.2f} points after the "
                "attacks before it: the model's gradients may mislead them. Its true robustness is likely lower.",
                value=share,
            )
    return None


def training_mode(model: nn.Module) -> bool:
    """Whether any part of the model is in training mode."""
    return any(module.training for module in model.modules())


def came_in_training_mode() -> Flag:
    return Flag(
        name="training_mode",
        sentence="The model was in training mode, or went back to it while it answered. It was put into evaluation "
        "mode, where dropout and batch statistics stand still; if it was meant otherwise, this is another model.",
    )


def _scaled(logits: Tensor) -> Tensor:
    """Shift to mean 0 and scale to length 1, so that a large constant on all logits does not hide a difference."""
    centered = logits.double() - logits.double().mean(1, keepdim=True)
    length: Tensor = centered.norm(dim=1, keepdim=True)
    return centered / length.clamp_min(torch.finfo(torch.float64).tiny)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm(dim=1).max())
