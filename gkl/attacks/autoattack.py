"""The attacks of a protocol, as pyautoattack implements them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from gkl.catalog import ATTACK_TITLES, AnyAttackName, AttackName
from gkl.spec import Evaluation

# pyautoattack logs warnings for every batch. `gkl.evaluation.checks` checks the same conditions once and keeps flags,
# so this logger is silent.
_SILENT = logging.getLogger("gkl.evaluation.pyautoattack")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


# The difference-of-logits-ratio (DLR) loss divides by the difference between the largest and the third largest logit;
# its targeted form, by the difference between the largest logit and the mean of the third and fourth.
_DLR_CLASSES, _TARGETED_DLR_CLASSES = 3, 4


@dataclass(frozen=True)
class Attack:
    """One attack with all its options set."""

    name: AnyAttackName
    cost: int
    """Forward passes for one point that it does not break (a backward pass counts as two), to estimate the time."""
    calls: int
    """Calls of the model for one block in which it breaks no point, to estimate the time."""
    perturb: Callable[[Tensor, Tensor], Tensor]
    """Images (B, *) in [0, 1] and labels (B,) -> perturbed images (B, *); changes torch's global random state."""
    loss: str | None = None
    """The loss that it increases; None for FAB, Square and Transfer."""
    targets: int | None = None
    """How many classes it targets for each point; None for an untargeted attack."""

    @property
    def title(self) -> str:
        """Its name in reports, such as 'APGD-T'."""
        return ATTACK_TITLES[self.name]


def make_attacks(model: nn.Module, evaluation: Evaluation, *, num_classes: int, device: torch.device) -> list[Attack]:
    """Build the protocol's attacks in their order (arXiv 2003.01690; FAB: 1907.02044; Square: 1912.00049).

    Every call of an attack starts from the spec's seed, as pyautoattack does for every batch, so that the result of
    a block depends on that block alone.

    With fewer than 10 classes there are as many targets as other classes. With fewer than 4, targeted APGD increases
    the target's cross-entropy margin instead of the targeted DLR loss, and with 2, APGD-DLR the plain margin, since
    DLR is not defined there.
    """
    return [_attack(name, model, evaluation, num_classes, device) for name in evaluation.attack_names]


def _attack(
    name: AttackName, model: nn.Module, evaluation: Evaluation, num_classes: int, device: torch.device
) -> Attack:
    assert evaluation.threat_model is not None, "only a protocol with attacks has some"
    # The constructor sets the published options, so a change of pyautoattack's defaults takes effect here too.
    reference = AutoAttack(
        model,
        norm=evaluation.threat_model.norm,
        eps=evaluation.threat_model.epsilon,
        seed=evaluation.seed,
        version=evaluation.protocol,
        attacks=list(evaluation.attack_names) if evaluation.protocol == "custom" else None,
        device=device,
    )
    reference.apgd.logger = reference.apgd_targeted.logger = _SILENT
    if name == "square":
        square = reference.square
        return Attack(name, square.n_queries, square.n_queries, square.perturb)
    if name in ("fab", "fab-t"):
        return _fab(name, reference, is_targeted=name == "fab-t", num_classes=num_classes)
    if name == "apgd-t":
        return _targeted_apgd(name, reference, num_classes)
    apgd = reference.apgd
    apgd.loss, loss = ("ce", "ce") if name == "apgd-ce" else ("dlr", "dlr")
    if loss == "dlr" and num_classes < _DLR_CLASSES:
        apgd.dlr_loss, loss = margin_loss, "margin"
    passes = apgd.n_restarts * apgd.eot_iter * apgd.n_iter
    return Attack(name, 3 * passes, passes, apgd.perturb, loss=loss)


def _targeted_apgd(name: AttackName, reference: Any, num_classes: int) -> Attack:
    apgd, loss = reference.apgd_targeted, "dlr-targeted"
    apgd.n_target_classes = targets = min(apgd.n_target_classes, num_classes - 1)
    if num_classes < _TARGETED_DLR_CLASSES:
        apgd.dlr_loss_targeted, loss = apgd.ce_loss_targeted, "ce-targeted"
    passes = targets * apgd.n_restarts * apgd.eot_iter * apgd.n_iter
    return Attack(name, 3 * passes, passes, apgd.perturb, loss=loss, targets=targets)


def _fab(name: AttackName, reference: Any, *, is_targeted: bool, num_classes: int) -> Attack:
    fab = reference.fab
    fab.targeted = is_targeted
    if not is_targeted:
        # Each step takes a forward pass, a backward pass per class, and a forward pass to judge the result.
        passes = fab.n_restarts * fab.n_iter
        return Attack(name, (2 + 2 * num_classes) * passes, 2 * passes, fab.perturb)
    # pyautoattack runs targeted FAB without restarts, even where untargeted FAB restarts.
    fab.n_restarts = 1
    fab.n_target_classes = targets = min(fab.n_target_classes, num_classes - 1)
    passes = targets * fab.n_iter
    return Attack(name, 4 * passes, 2 * passes, fab.perturb, targets=targets)


def margin_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other logit minus the label's: (B, C), (B,) -> (B,), positive where misclassified."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.amax(1) - own.squeeze(1)


def dlr_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference-of-logits ratio (arXiv 2003.01690, Eq. 6), or with 2 classes the margin: (B, C), (B,) -> (B,)."""
    margin = margin_loss(logits, labels)
    if logits.shape[1] < _DLR_CLASSES:
        return margin
    ordered = logits.sort(dim=1, descending=True).values
    return margin / (ordered[:, 0] - ordered[:, 2] + 1e-12)
