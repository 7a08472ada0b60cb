"""The attacks of a protocol, as pyautoattack implements them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from gkl.spec import ThreatModel


@dataclass(frozen=True)
class Attack:
    """One attack with all its options set."""

    name: str
    cost: int
    """Forward passes it is worth for a point it cannot break (a backward pass counts as two); for estimates."""
    calls: int
    """Calls of the model it makes for a block it cannot break; for estimates."""
    perturb: Callable[[Tensor, Tensor], Tensor]
    """Images (B, *) in [0, 1] and labels (B,) -> perturbed images (B, *); changes torch's global random state."""


def standard_attacks(model: nn.Module, threat_model: ThreatModel, *, seed: int, device: torch.device) -> list[Attack]:
    """AutoAttack's standard version (arXiv 2003.01690): APGD-CE, targeted APGD-DLR, targeted FAB, Square.

    Every call of an attack starts from `seed`, as pyautoattack does for every batch, so that a block's
    result depends on nothing but the block.
    """
    # Its constructor holds the published options; a change of the reference's defaults is a change here too.
    reference = AutoAttack(
        model, norm=threat_model.norm, eps=threat_model.epsilon, seed=seed, version="standard", device=device
    )
    reference.apgd.loss = "ce"
    reference.fab.targeted = True
    targets, iterations = reference.apgd_targeted.n_target_classes, reference.apgd.n_iter
    queries = reference.square.n_queries
    return [
        Attack("APGD-CE", 3 * iterations, iterations, reference.apgd.perturb),
        Attack("APGD-T", 3 * targets * iterations, targets * iterations, reference.apgd_targeted.perturb),
        Attack("FAB-T", 4 * targets * iterations, 2 * targets * iterations, reference.fab.perturb),
        Attack("Square", queries, queries, reference.square.perturb),
    ]
