"""The spec of an evaluation: protocol, attacks, threat model and number of images."""

from __future__ import annotations

import math
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from gkl.catalog import CORRUPTED_DATASETS, DATASETS, AttackName, image_shape, preprocessing_for
from gkl.spec.common import Seed, Spec, ThreatModel, check_epsilon_fits

Protocol = Literal["standard", "plus", "rand", "custom", "clean", "corruptions"]

PROTOCOL_ATTACKS: dict[Protocol, tuple[AttackName, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""The versions of AutoAttack (arXiv 2003.01690) -> the attacks of each, in the order in which they run."""

PROTOCOLS_WITH_MORE: tuple[Protocol, ...] = ("standard", "plus")
"""Protocols followed by further attacks, which do not rely on the network's own gradients: the repair attack, and the
adversarial examples of other networks."""

RANKED_PROTOCOLS: tuple[Protocol, ...] = (*PROTOCOLS_WITH_MORE, "corruptions", "clean")
"""Those whose complete results have a place on a board: attacks no weaker than the standard ones, common corruptions,
and clean images, each on boards of their own."""


class Evaluation(Spec):
    """What is measured of a model: accuracy under attacks, under common corruptions, or on clean images alone."""

    protocol: Protocol = "standard"
    """AutoAttack's 'standard', 'plus' or 'rand' (for randomized models; 20 gradients a step); 'custom' with a list of
    attacks; 'clean' without any; or 'corruptions', the 15 common ones in five severities."""

    attacks: tuple[AttackName, ...] | None = Field(default=None, strict=False)
    """The attacks of the protocol 'custom', in their order, with the options of AutoAttack's custom version."""

    threat_model: ThreatModel | None = None
    """What an attack may do; not for 'clean' and 'corruptions'."""

    num_points: int | None = Field(default=None, ge=1)
    """Evaluate this many test images, the first ones; null evaluates all. Only complete evaluations are ranked."""

    batch_size: int = Field(default=200, ge=1, le=10_000)
    """Images attacked at once; part of the result, since each block of this size has its own random stream."""

    seed: Seed = 0
    """Seed of the attacks."""

    shards: int = Field(default=1, ge=1, le=256)
    """Divide the blocks among this many jobs, which may run on different workers; the verdict is the same."""

    @property
    def attack_names(self) -> tuple[AttackName, ...]:
        """The attacks in the order in which they run; empty for 'clean' and 'corruptions'."""
        return self.attacks or PROTOCOL_ATTACKS.get(self.protocol, ())

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.protocol == "custom":
            if not self.attacks:
                # AutoAttack would run nothing and report the clean accuracy as the robust one.
                raise ValueError(f"the protocol 'custom' needs attacks; name some of {', '.join(get_args(AttackName))}")
            if len(set(self.attacks)) < len(self.attacks):
                raise ValueError("attacks names one twice, which would find nothing new; name each once")
        elif self.attacks is not None:
            raise ValueError(f"attacks are for the protocol 'custom'; {self.protocol!r} has its own, leave them out")
        if self.protocol in ("clean", "corruptions"):
            if self.threat_model is not None:
                raise ValueError(f"the protocol {self.protocol!r} has no threat_model; leave it out")
        elif self.threat_model is None:
            raise ValueError(
                f"the protocol {self.protocol!r} needs a threat_model, such as {{'norm': 'Linf', 'epsilon': '8/255'}}"
            )
        if self.protocol == "corruptions" and self.shards > 1:
            raise ValueError("an evaluation on corruptions has no shards; leave them out")
        return self


def why_on_no_board(dataset: str, protocol: str, num_points: int) -> str | None:
    """Say why a verdict cannot be placed on a board of attacks.

    Returns:
        The end of a sentence that begins with 'the verdict'; None if the verdict can be placed.

    >>> why_on_no_board("digits", "standard", 50)
    'is about 50 of the 360 test images of digits, and a board is about all of them; evaluate without num_points'
    """
    if dataset not in DATASETS:
        return f"is about other images than those that there are boards of: {', '.join(DATASETS)}"
    if protocol not in PROTOCOLS_WITH_MORE:
        takes = " and ".join(repr(each) for each in PROTOCOLS_WITH_MORE)
        return f"is of protocol {protocol!r}, and a board takes {takes}"
    if num_points != DATASETS[dataset].num_test:
        return (
            f"is about {num_points} of the {DATASETS[dataset].num_test} test images of {dataset}, and a board is about "
            "all of them; evaluate without num_points"
        )
    return None


def check_evaluation_fits(dataset: str, architecture: str, evaluation: Evaluation) -> None:
    """
    Raises:
        ValueError: the evaluation is not possible for this data set: its epsilon, protocol, number of points or number
            of shards.
    """
    if evaluation.threat_model is not None:
        shape = image_shape(dataset, preprocessing_for(dataset, architecture))
        check_epsilon_fits(dataset, shape, evaluation.threat_model)
    if evaluation.protocol == "corruptions" and dataset not in CORRUPTED_DATASETS:
        raise ValueError(
            f"there is no corrupted version of {dataset}; the protocol 'corruptions' is for "
            f"{', '.join(CORRUPTED_DATASETS)}"
        )
    available = DATASETS[dataset].num_test
    if evaluation.num_points is not None and evaluation.num_points > available:
        raise ValueError(
            f"num_points {evaluation.num_points} exceeds the {available} test images of {dataset}; "
            "leave it out to attack all of them"
        )
    num_points = evaluation.num_points or available
    blocks = math.ceil(num_points / evaluation.batch_size)
    if evaluation.shards > blocks:
        raise ValueError(
            f"shards {evaluation.shards} exceeds the {blocks} blocks of batch_size {evaluation.batch_size} that "
            f"{num_points} points make; lower one of them"
        )
