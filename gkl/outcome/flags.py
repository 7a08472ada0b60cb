"""What each flag of an evaluation means, and which of them take a verdict's rank. Free of torch.

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
        "At some points autograd's gradient differs from what the network's answers do when its input moves. The "
        "attacks follow the gradient, so they were sent in wrong directions.",
        "Networks whose backward pass is a stand-in on purpose, such as activations in 4 bits with a "
        "straight-through gradient.",
        "replace what changes the backward pass, or scale the weights so that it neither overflows nor underflows",
        bars_rank=True,
    ),
    "lost_slope": FlagKind(
        "Lost slope",
        "The answers change over a sixteenth of the budget, and the gradient at the same points is nearly flat.",
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
        "The answers move in steps far wider than the number format needs: in float64 the same network answers "
        "otherwise, or nearby images get identical answers. Small moves of an attack are then invisible to it.",
        "Networks that compute in a narrower format than their weights have, and networks with a very large "
        "constant added to all logits.",
        "remove the common offset from the last layer, or store the weights in the format that the network computes in",
        bars_rank=True,
    ),
    "remembers": FlagKind(
        "Remembers",
        "After the attacks the network answers new images otherwise than a copy that was not attacked. Its answers "
        "depend on what it was asked before.",
        "None that we know: evaluation mode keeps no state.",
        "remove the state that a forward pass changes",
        bars_rank=True,
    ),
    "two_faces": FlagKind(
        "Two faces",
        "The network answers otherwise when a gradient is wanted, so the attacks saw another network than users do.",
        "None that we know.",
        "remove what depends on requires_grad or on the gradient mode",
        bars_rank=True,
    ),
    "cliff": FlagKind(
        "Cliff",
        "By its own gradients the network's decisions lie further away than any image, or far closer than points "
        "that no attack broke. Its gradients do not describe its decisions.",
        "None in our measurements.",
        "return the logits themselves, without rounding them towards the winner or a saturating function",
        bars_rank=True,
    ),
    "gap": FlagKind(
        "Gap",
        "Attacks that do not trust the network's gradients broke points that gradient attacks had left: Square, the "
        "repair attack, examples made for other networks, or examples that somebody sent.",
        "None in our measurements; a stronger attack that somebody publishes may raise it on any network.",
        "have the gradients checked, and " + _SEND_EXAMPLES,
        bars_rank=True,
    ),
    "randomized": FlagKind(
        "Randomized",
        "The network answers the same images differently each time, so one run of the attacks says little.",
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
        "The answer to an image depends on the images beside it.",
        "Networks that normalize with the statistics of the batch.",
        "normalize with fixed statistics",
        bars_rank=True,
    ),
    "dynamic": FlagKind(
        "Dynamic",
        "The network computes gradients while it answers. AutoAttack is not made for defenses that optimize at test "
        "time and overestimates them.",
        "Purification and other test-time defenses.",
        _SEND_EXAMPLES,
        bars_rank=True,
    ),
    "probabilities_as_logits": FlagKind(
        "Probabilities as logits",
        "The network returns probabilities, whose gradients vanish where it is sure.",
        "Networks that end in a softmax.",
        "leave out the softmax",
        bars_rank=True,
    ),
    "log_probabilities_as_logits": FlagKind(
        "Log-probabilities as logits",
        "The network returns logarithms of probabilities; what the softmax rounded to zero is lost to the attacks.",
        "Networks that end in a log-softmax; their figure was right in our measurements.",
        "leave out the log-softmax",
        bars_rank=False,
    ),
    "square_improved": FlagKind(
        "Square improved",
        "Square, which uses no gradients, broke more than one point and more than 0.2 % of all after the other "
        "attacks.",
        "Now and then any network, by two or three points.",
        "nothing is needed for a few points; beyond that see the flag 'gap'",
        bars_rank=False,
    ),
    "training_mode": FlagKind(
        "Training mode",
        "The network came in training mode; it was put into evaluation mode before it was measured.",
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
    """Why a verdict with these flags cannot be believed, and what its owner can do; None if it can.

    The first flag that takes the rank decides, in the order of `FLAGS`. `is_clean`: the verdict is a clean accuracy,
    which only the flags of `ON_CLEAN_BOARDS` concern.
    """
    raised = {flag.name: flag for flag in flags}
    for name, kind in FLAGS.items():
        remedy = ON_CLEAN_BOARDS.get(name) if is_clean else kind.remedy
        if kind.bars_rank and name in raised and remedy is not None:
            return f"{kind.title}: {raised[name].sentence} To have it ranked, {remedy}."
    return None
