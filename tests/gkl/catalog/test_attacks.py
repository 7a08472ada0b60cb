"""Attacks by name, and the titles that stored rows and certificates hold."""

from __future__ import annotations

from typing import get_args

from gkl.catalog import ATTACK_TITLES, BEYOND_AUTOATTACK, AttackName, attack_name
from gkl.outcome import AttackOutcome, broken_beyond_autoattack, gap

# As certificates and rows of version 0.1 hold them.
STORED = {
    "APGD-CE": "apgd-ce",
    "APGD-DLR": "apgd-dlr",
    "APGD-T": "apgd-t",
    "FAB": "fab",
    "FAB-T": "fab-t",
    "Square": "square",
    "Repair": "repair",
    "Transfer": "transfer",
}


def test_each_stored_title_is_one_attack() -> None:
    assert {title: attack_name(title) for title in STORED} == STORED
    assert ATTACK_TITLES.keys() == {*get_args(AttackName), *BEYOND_AUTOATTACK}
    assert AttackOutcome(attack="APGD-T", points=1, broken=0, seconds=0).name == "apgd-t"


def test_somebodys_own_attack_is_none_of_them() -> None:
    assert attack_name("transfer from a") is None
    assert attack_name("square") is None, "a name is no title"
    counts = {"APGD-CE": 50, "square": 30, "Repair": 2, "Transfer": 1}
    assert broken_beyond_autoattack(counts) == 3
    assert gap(counts, 100) is None
    found = gap(counts | {"Square": 4}, 100)
    assert found is not None
    assert "(Repair 2, Transfer 1, Square 4)" in found.sentence
