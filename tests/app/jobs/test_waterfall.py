"""What is said of an evaluation's points while it runs, held against drawing them."""

from __future__ import annotations

import random

import pytest

from app.jobs.waterfall import left_after, waterfall
from gkl.outcome import AttackSoFar, PointsSoFar
from gkl.spec import Evaluation, ThreatModel

STANDARD = Evaluation(threat_model=ThreatModel(epsilon=0.2))
TWO = Evaluation(protocol="custom", attacks=("apgd-ce", "square"), threat_model=ThreatModel(epsilon=0.2))


def so_far(*attacks: AttackSoFar, clean_done: int = 400, clean_correct: int = 350) -> PointsSoFar:
    return PointsSoFar(points=400, clean_done=clean_done, clean_correct=clean_correct, attacks=attacks)


def attack(name: str, points: int, done: int, broken: int) -> AttackSoFar:
    return AttackSoFar(attack=name, points=points, done=done, broken=broken)


def test_each_stage_begins_with_what_the_one_before_has_left() -> None:
    found = waterfall(
        so_far(attack("APGD-CE", 350, 350, 150), attack("Square", 200, 40, 10)), TWO, {"APGD-CE": 7.5, "Square": 9.0}
    )
    stages = [(stage.label, stage.standing, stage.lost, stage.seconds) for stage in found.stages]
    assert stages == [("clean", 350, 50, None), ("APGD-CE", 200, 150, 7.5), ("Square, so far", 190, 10, None)]
    assert found.stages[1].width == 50.0
    assert found.sentence.startswith("At most 47.5 % of the 400 points can withstand everything.")


def test_before_an_attack_only_the_upper_bound_is_said() -> None:
    found = waterfall(so_far(clean_done=100, clean_correct=80), STANDARD, {})
    assert [(stage.label, stage.standing) for stage in found.stages] == [("clean, so far", 380)]
    assert found.sentence == "At most 95.0 % of the 400 points can withstand everything."
    begun = waterfall(so_far(attack("APGD-CE", 350, 0, 0)), STANDARD, {})
    assert begun.sentence == "At most 87.5 % of the 400 points can withstand everything."


def test_what_is_expected_says_on_what_it_stands_and_what_may_come() -> None:
    early = waterfall(so_far(attack("APGD-CE", 350, 100, 40)), STANDARD, {}, of="points of this shard").sentence
    assert "of the 400 points of this shard" in early
    assert "If the remaining ones, which come later in the test set, are like those" in early
    assert "APGD-T, FAB-T, Square, Repair and Transfer can only lower that" in early
    last = waterfall(so_far(attack("APGD-CE", 350, 350, 150), attack("Square", 200, 40, 10)), TWO, {}).sentence
    low, high = left_after(attack("Square", 200, 40, 10))
    assert f"it leaves {low / 4:.1f} to {high / 4:.1f} % of all points" in last
    assert "It is the last attack: the robust accuracy ends there." in last
    ended = waterfall(so_far(attack("APGD-CE", 350, 350, 150)), TWO, {}).sentence
    assert "If the remaining" not in ended, "nothing of it is left to expect"


@pytest.mark.parametrize(
    ("points", "broken", "done"), [(300, 60, 100), (300, 15, 250), (2000, 1500, 200), (60, 30, 20)]
)
def test_the_interval_holds_what_the_attack_leaves_as_often_as_it_says(points: int, broken: int, done: int) -> None:
    """Points in any order: of 2000 orders 95 % or so."""
    drawn, held = random.Random(0), 0
    for _ in range(2000):
        found = sum(place < broken for place in drawn.sample(range(points), done))
        low, high = left_after(attack("x", points, done, found))
        held += low <= points - broken <= high
        assert points - found - (points - done) <= low <= high <= points - found
    assert 0.93 <= held / 2000 <= 0.99
