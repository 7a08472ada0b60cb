"""How many points withstand a running evaluation so far, and what to expect at its end.

An evaluation attacks in stages: each attack runs, block by block in the order of the test images, on the points that
all attacks before it have left. So no point is finished before the last attack. The finished blocks of the running
attack let us estimate how many points it leaves; later attacks can only break more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.core.formatting import percent
from gkl.catalog import ATTACK_TITLES, BEYOND_AUTOATTACK, AnyAttackName
from gkl.outcome import AttackSoFar, PointsSoFar
from gkl.spec import PROTOCOLS_WITH_MORE, Evaluation
from gkl.statistics.intervals import wilson_interval


@dataclass(frozen=True)
class Stage:
    """The points that are left after a stage; while it runs, so far."""

    label: str
    standing: int
    lost: int
    width: float
    """Shares of all points: those left, and those lost in this stage; in percent."""
    lost_width: float
    seconds: float | None
    """Its time, once it has ended."""


@dataclass(frozen=True)
class Waterfall:
    points: int
    stages: list[Stage]
    sentence: str
    """What is certain, and what the finished blocks suggest."""


def waterfall(
    so_far: PointsSoFar, evaluation: Evaluation, seconds: Mapping[str, float], *, of: str = "points"
) -> Waterfall:
    """The stages of a running evaluation, from its progress.

    Args:
        so_far: the counts of the run's progress.
        evaluation: the evaluation that runs.
        seconds: time of each finished attack, by its name.
        of: what the points are called, if they are not all points of the evaluation.
    """
    lost = so_far.clean_done - so_far.clean_correct
    standing = so_far.points - lost
    clean = "clean" if so_far.clean_done == so_far.points else "clean, so far"
    stages = [_stage(so_far, clean, standing, lost, None)]
    for attack in so_far.attacks:
        standing -= attack.broken
        is_done = attack.done == attack.points
        label = attack.attack if is_done else f"{attack.attack}, so far"
        time = seconds.get(attack.attack) if is_done else None
        stages.append(_stage(so_far, label, standing, attack.broken, time))
    sentence = f"At most {percent(standing / so_far.points, 1)} of the {so_far.points} {of} can withstand everything."
    if so_far.attacks:
        sentence += _expectation(so_far, so_far.attacks[-1], attacks_after(so_far.attacks[-1].attack, evaluation))
    return Waterfall(so_far.points, stages, sentence)


def _stage(so_far: PointsSoFar, label: str, standing: int, lost: int, seconds: float | None) -> Stage:
    share = 100 / so_far.points
    return Stage(label, standing, lost, standing * share, lost * share, seconds)


def attacks_after(attack: str, evaluation: Evaluation) -> list[str]:
    """The titles of the attacks that follow an attack.

    >>> attacks_after("APGD-T", Evaluation(protocol="plus", threat_model={"epsilon": 0.1}))
    ['FAB-T', 'Repair', 'Transfer']
    """
    names: list[AnyAttackName] = [*evaluation.attack_names]
    if evaluation.protocol in PROTOCOLS_WITH_MORE:
        names += BEYOND_AUTOATTACK
    titles = [ATTACK_TITLES[name] for name in names]
    return titles[titles.index(attack) + 1 :] if attack in titles else []


def left_after(attack: AttackSoFar) -> tuple[float, float]:
    """How many points an attack will leave: a 95 % interval, from its finished blocks.

    The Wilson interval with the correction for a finite population: the finished points are a large share of all
    points, and once all are finished nothing is uncertain.

    >>> low, high = left_after(AttackSoFar(attack="Square", points=300, done=100, broken=20))
    >>> f"{low:.0f} {high:.0f}"
    '219 257'
    >>> left_after(AttackSoFar(attack="Square", points=300, done=300, broken=60))
    (240.0, 240.0)
    """
    rest = attack.points - attack.done
    if rest == 0:
        return float(attack.points - attack.broken), float(attack.points - attack.broken)
    trials = attack.done * (attack.points - 1) / rest
    low, high = wilson_interval(trials * attack.broken / max(1, attack.done), trials)
    # The finished points bound the result from both sides.
    most, least = attack.broken + rest, attack.broken
    return attack.points - min(high * attack.points, most), attack.points - max(low * attack.points, least)


def _expectation(so_far: PointsSoFar, attack: AttackSoFar, after: Sequence[str]) -> str:
    if not 0 < attack.done < attack.points:
        return ""
    low, high = (100 * left / so_far.points for left in left_after(attack))
    said = (
        f" {attack.attack} has finished {attack.done} of its {attack.points} points and broken {attack.broken}. If the "
        f"remaining ones, which come later in the test set, are like those, it leaves {low:.1f} to {high:.1f} % of all "
        "points (95 % Wilson interval)."
    )
    if not after:
        return said + " It is the last attack: the robust accuracy ends there."
    return said + f" {_listed(after)} can only lower that: the robust accuracy may end below."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
