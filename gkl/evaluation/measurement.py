"""What the attacks of a protocol do to a model on given images, block by block.

The points are cut into fixed blocks of `batch_size` consecutive ones. Attack after attack takes, block by block, the
points that still stand; a point is broken when an attack returns an image inside the threat model that the model
misclassifies. Blocks know nothing of each other, so the verdict depends on the evaluation's spec alone: not on
restarts, and not on which process attacked which block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gkl.data import ImageSet
from gkl.errors import InvalidInput
from gkl.evaluation.attack_stage import run_attack
from gkl.evaluation.blocks import Blocks
from gkl.evaluation.clean_pass import run_clean
from gkl.evaluation.merging import attack_outcome, measurement
from gkl.evaluation.network_checks import run_checks
from gkl.evaluation.points import Measurement
from gkl.evaluation.run import Run
from gkl.outcome import AttackFinished, Event
from gkl.spec import Evaluation

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """A share of the blocks: every `count`-th one, from `index`, counted from 0."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InvalidInput(f"there is no shard {self.index + 1} of {self.count}; take 1 to {self.count}")

    def __contains__(self, block: int) -> bool:
        return block % self.count == self.index


def measure(
    model: nn.Module,
    data: ImageSet,
    evaluation: Evaluation,
    *,
    num_classes: int,
    blocks: Blocks | None = None,
    report: Callable[[Event], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    provisional: Callable[[Measurement], None] = lambda _: None,
    device: torch.device | None = None,
    others: Sequence[Path] = (),
) -> Measurement:
    """Attack any classifier on any images as the evaluation says; what is in `blocks` already is not run again.

    The model is evaluated in evaluation mode, with parameters that take no gradients; afterwards it is as before.
    torch's global random streams are left as they were.

    Args:
        model: images (B, channels, height, width) float32 in [0, 1] -> logits (B, C); of any floating number format.
        data: N images, uint8 or of any floating format with values in [0, 1], and labels 0 to C - 1.
        evaluation: a protocol with attacks, or 'clean'.
        num_classes: C, at least 2.
        blocks: where finished parts are kept; by default in memory.
        report: called with progress and every finished attack.
        should_stop: asked at every call of the model; when it says yes the run ends with `Stopped`.
        provisional: called after APGD-T with what is certain then, if other attacks follow it.
        device: where to compute; by default where the model is.
        others: certificates of other networks on the same images, whose adversarial examples are tried at the end.

    Raises:
        InvalidInput: images or labels of another kind or range, or the model's answers are no logits of C classes.
        Stopped: `should_stop` said yes.
    """
    run = Run(
        model,
        data,
        evaluation,
        num_classes=num_classes,
        blocks=blocks,
        report=report,
        should_stop=should_stop,
        device=device,
        others=others,
    )
    with run.prepared():
        run_stages(run, range(run.num_blocks), provisional)
        return measurement(run, len(run.attacks))


def measure_shard(
    model: nn.Module,
    data: ImageSet,
    evaluation: Evaluation,
    shard: Shard,
    *,
    num_classes: int,
    blocks: Blocks,
    report: Callable[[Event], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    device: torch.device | None = None,
) -> None:
    """Run one shard's parts into `blocks`; `measure` puts all shards' parts together. Else like `measure`."""
    run = Run(
        model,
        data,
        evaluation,
        num_classes=num_classes,
        blocks=blocks,
        report=report,
        should_stop=should_stop,
        device=device,
    )
    with run.prepared():
        run_stages(run, [number for number in range(run.num_blocks) if number in shard])


def run_stages(run: Run, numbers: Iterable[int], provisional: Callable[[Measurement], None] | None = None) -> None:
    """All stages on these blocks. With `provisional` they are all blocks."""
    mine = list(numbers)
    run_clean(run, mine)
    if provisional is not None or 0 in mine:
        run_checks(run)
    names = [attack.name for attack in run.attacks]
    for position, attack in enumerate(run.attacks):
        if attack.name == "transfer" and provisional is None:
            # It takes seconds, and the job that merges the shards has the other networks' certificates.
            continue
        run_attack(run, position, mine)
        if provisional is None:
            continue
        outcome = attack_outcome(run, position)
        _log.info("%s broke %d of %d points", attack.title, outcome.broken, outcome.points)
        run.report(AttackFinished(outcome=outcome))
        is_last = position == len(run.attacks) - 1
        if attack.name == "apgd-t" and "apgd-ce" in names[:position] and not is_last:
            provisional(measurement(run, position + 1))
