"""What each flag of an evaluation means, and which of them bar a result from a rank. Free of torch.

`gkl.evaluation` raises the flags; boards, pages and exports read this table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gkl.outcome import Flag

FlagName = Literal[
    "randomized",
    "randomized_when_perturbed",
    "probabilities_as_logits",
    "log_probabilities_as_logits",
    "dynamic",
    "zero_gradients",
    "square_improved",
    "batch_dependent",
    "training_mode",
    "wrong_gradients",
    "lost_slope",
    "coarse",
    "remembers",
    "two_faces",
    "cliff",
    "gap",
]


@dataclass(frozen=True)
class FlagKind:
    """A kind of flag, in words for a reader of the leaderboard."""

    title: str
    meaning: str
    honest: str
    """Which honest networks raise it."""
    remedy: str
    """What the owner of such a network can do."""
    bars_rank: bool
    """Whether a verdict with this flag has no rank until an admin restores it."""


_SEND_EXAMPLES = "send adversarial examples that an attack made for this network finds; they are checked and counted"

FLAGS: dict[FlagName, FlagKind] = {
    "wrong_gradients": FlagKind(
        "Wrong gradients",
        "At some points autograd's gradient differs from how the network's output changes when its input changes. "
        "Attacks follow the gradient, so they searched in wrong directions.",
        "Networks that replace a gradient on purpose, such as networks with 4-bit activations and a straight-through "
        "gradient.",
        "remove what changes the backward pass, or scale the weights so that it neither overflows nor underflows",
        bars_rank=True,
    ),
    "lost_slope": FlagKind(
        "Lost slope",
        "The network's output changes within a sixteenth of epsilon, but the gradient at the same points is nearly "
        "zero.",
        "Networks with piecewise constant parts, such as k-winners-take-all or rounding with a weak surrogate.",
        "use a smooth activation in place of the discontinuous one, or " + _SEND_EXAMPLES,
        bars_rank=True,
    ),
    "zero_gradients": FlagKind(
        "Zero gradients",
        "At many points the gradient is exactly zero. Attacks that follow gradients find no direction there.",
        "Networks that quantize or binarize their input or activations.",
        "give the rounding a gradient, or " + _SEND_EXAMPLES,
        bars_rank=True,
    ),
    "coarse": FlagKind(
        "Coarse answers",
        "The logits change in steps far larger than the number format requires: in float64 the same network returns "
        "other logits, or nearby images get identical ones. An attack then cannot see the effect of a small step.",
        "Networks that compute in a lower precision than that of their weights, and networks that add a very large "
        "constant to all logits.",
        "remove the constant from the last layer, or store the weights in the format in which the network computes",
        bars_rank=True,
    ),
    "remembers": FlagKind(
        "Remembers",
        "After the attacks, the network's answers to new images differ from those of a copy that was not attacked. "
        "Its answers depend on earlier inputs.",
        "None that we know: in evaluation mode, a network keeps no state.",
        "remove the state that a forward pass changes",
        bars_rank=True,
    ),
    "two_faces": FlagKind(
        "Two faces",
        "The network's answers differ when a gradient is computed, so the attacks saw another network than users do.",
        "None that we know.",
        "remove code that depends on requires_grad or on the gradient mode",
        bars_rank=True,
    ),
    "cliff": FlagKind(
        "Cliff",
        "According to the network's gradients, its decision border is farther away than any image can be, or so near "
        "that the attacks should have broken points that they did not break. The gradients do not describe the "
        "decisions.",
        "None in our measurements.",
        "return the logits themselves, neither rounded nor passed through a saturating function",
        bars_rank=True,
    ),
    "gap": FlagKind(
        "Gap",
        "Attacks that do not trust the network's gradients broke points that gradient attacks had left: Square, the "
        "repair attack, examples made for other networks, or examples that a user sent.",
        "None in our measurements; if a stronger attack is published, its examples may raise it on any network.",
        "check the gradients, and " + _SEND_EXAMPLES,
        bars_rank=True,
    ),
    "randomized": FlagKind(
        "Randomized",
        "The network answers the same images differently each time, so the result of one run of the attacks is not "
        "reliable.",
        "Networks that add noise at inference on purpose.",
        "evaluate it with the protocol 'rand', which averages over the noise",
        bars_rank=True,
    ),
    "randomized_when_perturbed": FlagKind(
        "Randomized when perturbed",
        "The network answers perturbed images differently each time, though not the clean ones.",
        "None that we know.",
        "evaluate it with the protocol 'rand', which averages over the noise",
        bars_rank=True,
    ),
    "batch_dependent": FlagKind(
        "Depends on the batch",
        "The answer to an image depends on the other images in its batch.",
        "Networks that normalize with the statistics of the batch.",
        "normalize with fixed statistics",
        bars_rank=True,
    ),
    "dynamic": FlagKind(
        "Dynamic",
        "The network computes gradients while it answers. AutoAttack is not made for defenses that optimize at test "
        "time and overestimates their robustness.",
        "Purification and other test-time defenses.",
        _SEND_EXAMPLES,
        bars_rank=True,
    ),
    "probabilities_as_logits": FlagKind(
        "Probabilities as logits",
        "The network returns probabilities, whose gradients vanish where the network is confident.",
        "Networks that end in a softmax.",
        "leave out the softmax",
        bars_rank=True,
    ),
    "log_probabilities_as_logits": FlagKind(
        "Log-probabilities as logits",
        "The network returns logarithms of probabilities; the attacks cannot use what the softmax rounded to zero.",
        "Networks that end in a log-softmax; their accuracies were right in our measurements.",
        "leave out the log-softmax",
        bars_rank=False,
    ),
    "square_improved": FlagKind(
        "Square improved",
        "Square, which uses no gradients, broke more than one point and more than 0.2 % of all after the other "
        "attacks.",
        "Occasionally any network, by two or three points.",
        "do nothing for a few points; for more, see the flag 'gap'",
        bars_rank=False,
    ),
    "training_mode": FlagKind(
        "Training mode",
        "The network was in training mode; it was put into evaluation mode before the evaluation.",
        "Any network whose owner forgot to call eval().",
        "call eval() before the evaluation",
        bars_rank=False,
    ),
}


ON_CLEAN_BOARDS: dict[FlagName, str] = {
    "randomized": "make its answers the same each time",
    "batch_dependent": FLAGS["batch_dependent"].remedy,
}
"""The flags that make a clean accuracy unreliable, and what the owner can do. The others concern attacks alone."""


def unrankable(flags: Iterable[Flag], *, is_clean: bool = False) -> str | None:
    """Why a result with these flags gets no rank, and what its owner can do; None if no flag bars one.

    If several flags bar a rank, the sentence is about the first of them in the order of `FLAGS`.

    Args:
        flags: the result's flags.
        is_clean: whether the result is a clean accuracy, which only the flags of `ON_CLEAN_BOARDS` concern.
    """
    raised = {flag.name: flag for flag in flags}
    for name, kind in FLAGS.items():
        remedy = ON_CLEAN_BOARDS.get(name) if is_clean else kind.remedy
        if kind.bars_rank and name in raised and remedy is not None:
            return f"{kind.title}: {raised[name].sentence} To have it ranked, {remedy}."
    return None
