"""What an evaluation found: attacks, corruptions, checks, flags, accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from gkl.catalog import ATTACK_TITLES, BEYOND_AUTOATTACK, WITHOUT_GRADIENTS, AnyAttackName, attack_name
from gkl.outcome.common import Manifest, Record
from gkl.outcome.flags import FlagName, unrankable


class AttackOutcome(Record):
    """One attack of an evaluation. An attack only sees the points that no earlier attack broke."""

    attack: str
    """Its title, such as 'APGD-T'."""
    points: int
    """Points that entered the attack."""
    broken: int
    """Points for which it found an adversarial example."""
    seconds: float
    """Time spent on its finished blocks, including those finished before an interruption or on another machine."""
    discarded: int = 0
    """Images it returned that are misclassified but outside the threat model; not counted as broken."""
    loss: str | None = None
    """The loss that it increases, for attacks with a choice: 'ce', 'dlr', 'dlr-targeted'; with too few classes for
    DLR, 'margin' or 'ce-targeted'."""
    targets: int | None = None
    """How many classes it targets for each point; null for an untargeted attack."""

    @property
    def name(self) -> AnyAttackName | None:
        """Which attack it is; None for an attack of a user's own."""
        return attack_name(self.attack)

    @property
    def survivors(self) -> int:
        return self.points - self.broken


class Flag(Record):
    """A reason not to trust a result, found during the evaluation."""

    name: FlagName
    sentence: str
    """What was seen and what it means, for a reader of the leaderboard."""
    value: float | None = None
    """The measured quantity, such as a share or a distance; null if the flag has none."""


_GAP_POINTS, _GAP_SHARE = 3, 0.01


def gap(attacks: Mapping[str, int], num_points: int, *, external: int = 0) -> Flag | None:
    """Flag many points that gradient attacks had left and that attacks which do not trust gradients broke.

    Square breaks a few points of any network after the other attacks: a few of 10,000, and one or two of a few dozen.
    The flag is raised for more than three points if they are also more than 1 % of all points.

    Args:
        attacks: how many points each attack of an evaluation broke, by its title, in the order of the attacks.
        num_points: number of all points of the evaluation.
        external: how many points were broken after the attacks by examples that users sent.
    """
    # The first attack follows no other attack whose result it could contradict.
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
    """One check of whether the attacks saw the network as it is. A check that did not run was not passed."""

    name: CheckName
    value: float | None = None
    """The measured quantity; null where the check did not run."""
    limit: float | None = None
    """The value above which the flag of this check is raised."""
    points: int = 0
    """Images that it looked at."""
    note: str = ""
    """Why it did not run, or what its value means."""
    sources: tuple[str, ...] = ()
    """sha256 of the other networks' certificates that it tried, for 'transfer'."""

    @property
    def ran(self) -> bool:
        return self.value is not None


REPAIR, TRANSFER = ATTACK_TITLES["repair"], ATTACK_TITLES["transfer"]
"""Titles of the attacks that run after the protocol's own."""


def broken_beyond_autoattack(attacks: Mapping[str, int]) -> int:
    """How many points only the attacks after AutoAttack broke; `attacks` has each attack's count by its title."""
    return sum(broken for title, broken in attacks.items() if attack_name(title) in BEYOND_AUTOATTACK)


class CorruptionOutcome(Record):
    """One corruption at one severity."""

    corruption: str
    severity: int
    points: int
    correct: int
    seconds: float
    data_sha256: str
    """sha256 over all its images and labels; over names and sizes for ImageNet's files."""


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
    """mCE: for ImageNet relative to AlexNet's errors (arXiv 1903.12261), so that AlexNet has 1; else the mean error."""
    robustbench_mean_corruption_error: float | None = None
    """mCE as RobustBench's leaderboard computes it: for ImageNet relative to the errors of its own AlexNet; null for
    other data sets, and in outcomes of earlier versions."""
    flags: list[Flag] = Field(default_factory=list)
    """Reasons not to trust the result; empty if none was found."""
    checks: list[CheckOutcome] = Field(default_factory=list)
    """The checks of the network itself, also those that could not run; empty in results of versions before 0.2."""
    checks_seed: int | None = None
    """Seed of the points that the checks used. Each run draws a new one, so that no network can be prepared for it."""
    answers_vary: bool = False
    """Whether the model's answers change from call to call, or with the other images of a batch. Its results can then
    not be re-checked exactly."""
    certificate: str | None = None
    """File name of the certificate, relative to the run's directory."""
    seconds: float
    """Working time, including the time before an interruption."""
    manifest: Manifest

    @property
    def robust_accuracy(self) -> float | None:
        """Accuracy under attack, or the mean over corruptions and severities; None for clean images alone."""
        if self.corruptions:
            return sum(c.correct / c.points for c in self.corruptions) / len(self.corruptions)
        return None if self.robust_correct is None else self.robust_correct / self.num_points

    @property
    def autoattack_correct(self) -> int | None:
        """Points that the protocol's own attacks did not break; None without attacks."""
        if self.robust_correct is None:
            return None
        return self.robust_correct + broken_beyond_autoattack({each.attack: each.broken for each in self.attacks})

    @property
    def unrankable(self) -> str | None:
        """Why the result gets no rank, in a sentence or two; None if no flag bars one."""
        return unrankable(self.flags)


class ShardOutcome(Record):
    """All parts of a shard are finished; the evaluation that merges the shards makes the verdict."""

    type: Literal["shard"] = "shard"
    seconds: float
    """Time of this run."""
