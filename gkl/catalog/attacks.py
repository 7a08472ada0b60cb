"""The attacks of an evaluation: the names that code uses, and the titles that people read. Free of torch."""

from __future__ import annotations

from typing import Literal

AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
"""AutoAttack's own attacks, which a spec can ask for."""
AnyAttackName = Literal[AttackName, "repair", "transfer"]

ATTACK_TITLES: dict[AnyAttackName, str] = {
    "apgd-ce": "APGD-CE",
    "apgd-dlr": "APGD-DLR",
    "apgd-t": "APGD-T",
    "fab": "FAB",
    "fab-t": "FAB-T",
    "square": "Square",
    "repair": "Repair",
    "transfer": "Transfer",
}
"""What attacks are called in a verdict, and in stored rows and certificates."""

BEYOND_AUTOATTACK: tuple[AnyAttackName, ...] = ("repair", "transfer")
"""Attacks that run after the protocol's own; what they break counts, but not as AutoAttack's figure."""

WITHOUT_GRADIENTS: tuple[AnyAttackName, ...] = ("square", *BEYOND_AUTOATTACK)
"""Attacks that do not trust the network's gradients."""

_NAMES = {title: name for name, title in ATTACK_TITLES.items()}


def attack_name(title: str) -> AnyAttackName | None:
    """The attack with this title; None for somebody's own, such as one whose examples were sent.

    >>> attack_name("APGD-T"), attack_name("Mine (Ada)")
    ('apgd-t', None)
    """
    return _NAMES.get(title)
