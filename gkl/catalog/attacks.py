"""The attacks of an evaluation, with their names in specs and code and their titles on pages. Free of torch."""

from __future__ import annotations

from typing import Literal

AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
"""The attacks of AutoAttack, which a spec can ask for."""
AnyAttackName = Literal[AttackName, "repair", "transfer"]
"""All attacks of this service, including those that a spec cannot ask for."""

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
"""The attack's name -> its title in verdicts, stored rows and certificates."""

BEYOND_AUTOATTACK: tuple[AnyAttackName, ...] = ("repair", "transfer")
"""Attacks that run after those of the protocol. Points that they break count as broken, but not in AutoAttack's
figure."""

WITHOUT_GRADIENTS: tuple[AnyAttackName, ...] = ("square", *BEYOND_AUTOATTACK)
"""Attacks that do not rely on the network's own gradients."""

_NAMES = {title: name for name, title in ATTACK_TITLES.items()}


def attack_name(title: str) -> AnyAttackName | None:
    """Return the name of the attack with this title; None for other attacks, such as those of submitted examples.

    >>> attack_name("APGD-T"), attack_name("Mine (Ada)")
    ('apgd-t', None)
    """
    return _NAMES.get(title)
