"""Runs one attack on the surviving points of each block. The judge checks every image that the attack returns."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gkl.attacks.autoattack import Attack
from gkl.errors import InvalidInput
from gkl.evaluation.beyond_autoattack import not_run, repaired, transferred
from gkl.evaluation.blocks import Block
from gkl.evaluation.judge import judge
from gkl.evaluation.network_checks import drift_after
from gkl.evaluation.run import Run
from gkl.outcome import AttackSoFar

_log = logging.getLogger(__name__)

_BOX_ROUNDING = 1e-5


def run_attack(run: Run, position: int, mine: list[int]) -> None:
    """Run the attack at this position on the blocks of these numbers, and keep the finished parts.

    Raises:
        InvalidInput: the model failed under one of the protocol's own attacks. Where an attack after them fails on a
            block, that part records the reason instead.
        Stopped: the run was asked to stop.
    """
    attack = run.attacks[position]
    later = sum(other.cost for other in run.attacks[position + 1 :])
    waiting = list(mine)
    so_far = AttackSoFar(attack=attack.title, points=run.count(mine), done=0, broken=0)
    for number in mine:
        _tell_of(run, position, so_far)
        standing = run.standing_in(number)
        entering = standing.nonzero().squeeze(1)
        work = float(attack.cost * len(entering))
        left = float(attack.cost * run.count(waiting) + later * run.count(mine))
        waiting.remove(number)
        if len(entering) == 0:
            continue
        part = run.part(run.stage(position), number)
        found = run.known(part)
        earlier: Block | None = None
        known_others = found.record.get("sources", ()) if found is not None and attack.name == "transfer" else None
        if known_others is not None and run.others.files.keys() - set(known_others):
            # There are certificates now that the interrupted run did not have: try these too.
            found, earlier = None, found
        if found is None:
            detail = f"{run.count(mine)} points left, {run.detail(number, len(mine))}"
            run.progress.start_part(attack.title, detail, work=work, calls=attack.calls, left=left)
            try:
                found = _attack_block(run, attack, number, entering, earlier)
            except InvalidInput as error:
                if position < run.num_own_attacks:
                    raise
                _log.warning("%s did not run on block %d: %s", attack.title, number + 1, error)
                # Keep what an interrupted run has found.
                found = earlier or not_run(run, attack, number, str(error))
            run.keep(part, found)
            run.progress.finish_part()
        else:
            run.progress.restore(work)
        broken = found.tensors["index"] - run.slices[number].start
        standing[broken] = False
        so_far = so_far.model_copy(update={"done": so_far.done + len(entering), "broken": so_far.broken + len(broken)})
    _tell_of(run, position, so_far)


def _tell_of(run: Run, position: int, attack: AttackSoFar) -> None:
    """Update the counts of this attack, which every later progress report contains."""
    points = run.progress.points
    assert points is not None, "the clean pass comes first"
    run.progress.points = points.model_copy(update={"attacks": (*points.attacks[:position], attack)})


def _attack_block(run: Run, attack: Attack, number: int, entering: Tensor, earlier: Block | None) -> Block:
    """Attack these points of a block, given by their rows (n,), and judge every image that the attack returns."""
    started = time.perf_counter()
    x, y = run.points_of(number)
    x, y = x[entering], y[entering]
    index = entering + run.slices[number].start
    perturb = _perturb_of(run, attack, index, earlier)

    def attempt() -> tuple[Tensor, Tensor]:
        # An attack seeds torch itself, but only after its first call of the model.
        torch.manual_seed(run.evaluation.seed)
        x_adv = _into_box(perturb(x, y).detach())
        return x_adv, run.classifier.predict(x_adv)

    x_adv, prediction = run.fitting(len(x), attempt)
    assert run.evaluation.threat_model is not None
    judged = judge(x_adv, x, y, prediction, run.evaluation.threat_model)
    broken = judged.breaks.cpu()
    discarded = int((judged.fools & ~judged.allowed).sum())
    if discarded:
        _log.warning("%s returned %d images outside the threat model; not counted", attack.title, discarded)
    record = run.record(attack.title, number, time.perf_counter() - started)
    record |= {"points": len(entering), "broken": int(broken.sum()), "discarded": discarded}
    record["drift"] = drift_after(run, number, x)
    if attack.name == "transfer":
        record["sources"] = sorted(run.others.read | set(earlier.record["sources"] if earlier else ()))
    return Block(
        {
            "index": index[broken],
            "adversarial": x_adv.cpu()[broken],
            "prediction": prediction.cpu()[broken],
            "norm": judged.size.cpu()[broken],
        },
        record,
    )


def _perturb_of(run: Run, attack: Attack, index: Tensor, earlier: Block | None) -> Callable[[Tensor, Tensor], Tensor]:
    """The function by which an attack perturbs the points `index` (n,); `earlier` is what an interrupted run found."""
    if attack.name == "repair":
        return partial(repaired, run)
    if attack.name == "transfer":
        return partial(transferred, run, index, earlier)
    return attack.perturb


def _into_box(x_adv: Tensor) -> Tensor:
    """Clamp pixels that left the box by rounding, as in L1's projection; larger violations are left to the judge."""
    clamped = x_adv.clamp(0, 1)
    return clamped.where((clamped - x_adv).abs() <= _BOX_ROUNDING, x_adv)
