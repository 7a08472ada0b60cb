"""Reasons not to trust an evaluation, as data.

The five that AutoAttack warns of, with its conditions, and four more. AutoAttack prints them and goes on; one of them
it counts in a global variable, so that one model taints all later ones of a process. Here each is a `Flag` of the
evaluation that it belongs to.
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
# Distance of two answers to one image, each scaled to length 1, from which on they count as different.
_SAME_ANSWER = 1e-4
_SUM_TOLERANCE = 1e-5
# Share of all points by which Square must lower the accuracy.
# AutoAttack warns from the same share on. One point of a few dozen says nothing: Square is random.
_SQUARE_SHARE, _SQUARE_POINTS = 0.002, 1
# Share of the correctly classified points whose gradient may be zero.
_ZERO_SHARE = 0.01


@torch.no_grad()
def answers_differ(classifier: Classifier, x: Tensor, y: Tensor) -> float | None:
    """Ask five times; returns the largest distance of two answers if they differ, else None.

    AutoAttack's check for randomized models: the number of correct answers changes, or two scaled answers differ by
    more than 1e-4.
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
    """Whether rows (B, C) are probabilities, as AutoAttack tests it, or their logarithms."""
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
    """Whether an image's answer depends on the images beside it."""
    half = max(1, len(x) // 2)
    # A single image gets a companion.
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
    """Whether the forward pass itself takes gradients, as a defense that optimizes at test time does."""
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
        # Not under no_grad, in which such a defense could do nothing.
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
            # Something in the model has cut the graph.
            return None
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    if gradient is None:
        return None
    is_zero: Tensor = (gradient.flatten(1) == 0).all(1).cpu()
    return is_zero


def zero_gradients(points: int, of: int) -> Flag | None:
    # A single dead point among thousands must not cost a network its rank.
    if points <= _ZERO_SHARE * of:
        return None
    return Flag(
        name="zero_gradients",
        sentence=f"At {points} of {of} correctly classified points ({points / of:.1%}) the gradient of the loss is "
        "exactly zero, so attacks that follow gradients find no direction there; only Square can.",
        value=points / of,
    )


def square_improved(attacks: Sequence[AttackOutcome], num_points: int) -> Flag | None:
    """Whether Square, which uses no gradients, broke more than a point and more than chance would leave it."""
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
    """Centered over the classes and of length 1: a large constant on all logits must not hide a difference."""
    centered = logits.double() - logits.double().mean(1, keepdim=True)
    length: Tensor = centered.norm(dim=1, keepdim=True)
    return centered / length.clamp_min(torch.finfo(torch.float64).tiny)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm(dim=1).max())
