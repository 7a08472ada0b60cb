"""Runs the attacks of a protocol against a model on given images, block by block.

The points are divided into fixed blocks of `batch_size` consecutive points. Each attack runs, block by block, on the
points that no earlier attack broke. It breaks a point if it returns an image inside the threat model that the model
misclassifies. Blocks are independent of each other, so the result depends on the evaluation's spec alone, and neither
on restarts nor on which process attacked which block.
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
    """A share of the blocks: every `count`-th block, starting at `index`, which counts from 0."""

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
    """Attack any classifier on any images as the evaluation says. Parts that are already in `blocks` are not run again.

    The model is put into evaluation mode, and its parameters require no gradients; afterwards its state is restored.
    The state of torch's global random generators is restored, too.

    Args:
        model: images (B, channels, height, width) float32 in [0, 1] -> logits (B, C); of any floating-point format.
        data: N images, uint8 or floating-point with values in [0, 1], and labels 0 to C - 1.
        evaluation: a protocol with attacks, or 'clean'.
        num_classes: C, at least 2.
        blocks: where finished parts are kept; by default in memory.
        report: called with progress and every finished attack.
        should_stop: called at every call of the model; if it returns True, the run ends with `Stopped`.
        provisional: called after APGD-T with the result so far, if other attacks follow it.
        device: the device to compute on; by default the model's.
        others: certificates of other networks on the same images, whose adversarial examples are tried at the end.

    Raises:
        InvalidInput: images or labels have a wrong type or range, or the model does not return logits of C classes.
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
    """Run one shard's parts into `blocks`, with the arguments of `measure`, which merges the parts of all shards."""
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
    """Run all stages on these blocks. With `provisional`, these must be all blocks of the evaluation."""
    mine = list(numbers)
    run_clean(run, mine)
    if provisional is not None or 0 in mine:
        run_checks(run)
    names = [attack.name for attack in run.attacks]
    for position, attack in enumerate(run.attacks):
        if attack.name == "transfer" and provisional is None:
            # The job that merges the shards runs this attack: it has the certificates, and the attack takes seconds.
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
