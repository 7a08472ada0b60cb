"""What an evaluation found: attacks, corruptions, checks, flags, accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from gkl.catalog import ATTACK_TITLES, BEYOND_AUTOATTACK, WITHOUT_GRADIENTS, AnyAttackName, attack_name
from gkl.outcome.common import Manifest, Record
from gkl.outcome.flags import FlagName, unrankable


class AttackOutcome(Record):
    """One attack of an evaluation. An attack only sees the points that all before it left standing."""

    attack: str
    """Its title, such as 'APGD-T'."""
    points: int
    """Points that entered the attack."""
    broken: int
    """Points for which it found an adversarial example."""
    seconds: float
    """Time of its finished blocks, also of those before an interruption or on another machine."""
    discarded: int = 0
    """Images it returned that are misclassified but outside the threat model; not counted as broken."""
    loss: str | None = None
    """The loss it increases, where it has a choice: 'ce', 'dlr', 'dlr-targeted'; with too few classes for DLR,
    'margin' or 'ce-targeted'."""
    targets: int | None = None
    """Classes it aims at for each point, if it is targeted."""

    @property
    def name(self) -> AnyAttackName | None:
        """Which attack it is; None for somebody's own."""
        return attack_name(self.attack)

    @property
    def survivors(self) -> int:
        return self.points - self.broken


class Flag(Record):
    """A reason not to trust a verdict, found while it was measured."""

    name: FlagName
    sentence: str
    """What was seen and what it means, for a reader of the leaderboard."""
    value: float | None = None
    """The measured quantity, where there is one: a share, a distance."""


_GAP_POINTS, _GAP_SHARE = 3, 0.01


def gap(attacks: Mapping[str, int], num_points: int, *, external: int = 0) -> Flag | None:
    """Whether attacks that do not trust the network's gradients broke points that gradient attacks had left.

    At 10,000 points Square breaks a few of any network after the others, and at a few dozen one or two: only more than
    three points and more than one in a hundred count.

    Args:
        attacks: what each attack of an evaluation broke, by its title, in their order.
        num_points: all points of the evaluation.
        external: what examples that somebody sent broke after them.
    """
    # What comes first has nothing before it to contradict.
    found = {title: attacks[title] for title in list(attacks)[1:] if attack_name(title) in WITHOUT_GRADIENTS}
    if external:
        found["examples that were sent"] = external
    broken = sum(found.values())
    if broken <= max(_GAP_POINTS, _GAP_SHARE * num_points):
        return None
    said = ", ".join(f"{title} {count}" for title, count in found.items() if count)
    return Flag(
        name="gap",
        sentence=f"{broken} points that the attacks on gradients had left were broken after them ({said}).",
        value=broken / num_points,
    )


CheckName = Literal[
    "wrong_gradients",
    "lost_slope",
    "zero_gradients",
    "coarse",
    "ties",
    "cliff",
    "near_cliff",
    "two_faces",
    "remembers",
    "batch_dependent",
    "randomized",
    "repair",
    "transfer",
]


class CheckOutcome(Record):
    """One check of whether the attacks saw the network as it is. A check that did not run is not a check passed."""

    name: CheckName
    value: float | None = None
    """The measured quantity; null where the check did not run."""
    limit: float | None = None
    """The value above which the flag of this check is raised."""
    points: int = 0
    """Images that it looked at."""
    note: str = ""
    """Why it did not run, or what its value is."""
    sources: tuple[str, ...] = ()
    """sha256 of the other networks' certificates that it tried, for 'transfer'."""

    @property
    def ran(self) -> bool:
        return self.value is not None


REPAIR, TRANSFER = ATTACK_TITLES["repair"], ATTACK_TITLES["transfer"]
"""Titles of the attacks that run after the protocol's own."""


def broken_beyond_autoattack(attacks: Mapping[str, int]) -> int:
    """Points that only the attacks after AutoAttack's broke, by what each attack broke, by its title."""
    return sum(broken for title, broken in attacks.items() if attack_name(title) in BEYOND_AUTOATTACK)


class CorruptionOutcome(Record):
    """One corruption in one severity."""

    corruption: str
    severity: int
    points: int
    correct: int
    seconds: float
    data_sha256: str
    """Of all its images and labels; over names and sizes for ImageNet's files."""


class EvaluationOutcome(Record):
    type: Literal["evaluated"] = "evaluated"
    num_points: int
    clean_correct: int
    """Points classified correctly without perturbation."""
    robust_correct: int | None = None
    """Points for which no attack found an adversarial example; null without attacks."""
    attacks: list[AttackOutcome] = Field(default_factory=list)
    corruptions: list[CorruptionOutcome] = Field(default_factory=list)
    mean_corruption_error: float | None = None
    """mCE: for ImageNet relative to AlexNet's errors (arXiv 1903.12261), else the mean error itself; 1 is AlexNet's."""
    robustbench_mean_corruption_error: float | None = None
    """mCE as RobustBench's leaderboard has it: for ImageNet relative to the errors of its own AlexNet; null for other
    data sets, and in outcomes of earlier versions."""
    flags: list[Flag] = Field(default_factory=list)
    """Why not to trust it; empty if nothing was found."""
    checks: list[CheckOutcome] = Field(default_factory=list)
    """What was checked of the network itself, and what could not be; empty in results of versions before 0.2."""
    checks_seed: int | None = None
    """Seed of the points that the checks looked at, drawn anew for each run: known points can be prepared for."""
    answers_vary: bool = False
    """The model answers differently each time, or depending on the rest of a batch, so that no number of it can be
    re-checked exactly."""
    certificate: str | None = None
    """File name of the certificate, relative to the run's directory."""
    seconds: float
    """Working time, also before an interruption."""
    manifest: Manifest

    @property
    def robust_accuracy(self) -> float | None:
        """Accuracy under attack, or the mean over corruptions and severities; None for clean images alone."""
        if self.corruptions:
            return sum(c.correct / c.points for c in self.corruptions) / len(self.corruptions)
        return None if self.robust_correct is None else self.robust_correct / self.num_points

    @property
    def autoattack_correct(self) -> int | None:
        """Points that the protocol's own attacks left standing; None without attacks."""
        if self.robust_correct is None:
            return None
        return self.robust_correct + broken_beyond_autoattack({each.attack: each.broken for each in self.attacks})

    @property
    def unrankable(self) -> str | None:
        """Why the figure cannot be believed, in a sentence or two; None if nothing speaks against it."""
        return unrankable(self.flags)


class ShardOutcome(Record):
    """A shard's parts are all there; the evaluation that puts them together makes the verdict."""

    type: Literal["shard"] = "shard"
    seconds: float
    """Time that this run took."""
