"""Merges the finished parts of all blocks into a measurement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gkl.evaluation import belief, checks
from gkl.evaluation.blocks import Block
from gkl.evaluation.points import MISCLASSIFIED, STANDS, Measurement, Points
from gkl.evaluation.run import Run
from gkl.outcome import AttackOutcome, CheckName, CheckOutcome, Flag, gap
from gkl.spec import PROTOCOLS_WITH_MORE


def measurement(run: Run, num_attacks: int) -> Measurement:
    """Merge the parts of all blocks, of the clean pass, the checks and the first `num_attacks` attacks."""
    clean = [run.finished(number) for number in range(run.num_blocks)]
    checked = run.finished(run.part(run.num_own_attacks + 1, 0))
    ran = [position for position in range(num_attacks) if not _is_missing(run, position)]
    parts = [(place, part) for place, position in enumerate(ran) for part in run.parts_of(position)]
    points = _points(run, clean, parts, answers_vary=checked.record["answers_vary"])
    outcomes = [attack_outcome(run, position) for position in ran]
    drifts = [run.records[part].get("drift") for _, part in parts]
    is_complete = bool(run.attacks) and num_attacks == len(run.attacks)
    checks_made, flags = _checks_and_flags(run, checked, points, drifts, is_complete=is_complete)
    named = {flag.name for flag in flags}
    flags += [flag for flag in _flags_of_counts(run, clean, points, outcomes) if flag.name not in named]
    every = [block.record for block in (*clean, checked)] + [run.records[part] for _, part in parts]
    return Measurement(
        **vars(points),
        attacks=outcomes,
        flags=flags,
        checks=checks_made,
        checks_seed=checked.record["checks_seed"],
        device=", ".join(sorted({record["device"] for record in every})),
        batch_size_used=min(record["batch_size"] for record in every),
        seconds=sum(record["seconds"] for record in every),
    )


def _points(run: Run, clean: list[Block], parts: list[tuple[int, int]], *, answers_vary: bool) -> Points:
    """The table of all points.

    Args:
        run: the evaluation.
        clean: the parts of the clean pass on all blocks.
        parts: the attacks' parts, each as its attack's position among those that ran, and its number.
        answers_vary: whether the checks found that the model's answers vary.
    """
    prediction = torch.cat([block.tensors["prediction"] for block in clean])
    broken_by = torch.where(prediction == run.data.labels, STANDS, MISCLASSIFIED)
    norm = torch.full((len(run.data),), torch.nan, dtype=torch.float64)
    for place, part in parts:
        tensors = run.finished(part).tensors
        broken_by[tensors["index"]] = place
        norm[tensors["index"]] = tensors["norm"]
    index = (broken_by >= 0).nonzero().squeeze(1)
    # Each part is read a second time, one after the other, since the images of all parts may take gigabytes.
    adversarial = torch.empty((len(index), *run.data.images.shape[1:]))
    adversarial_prediction = torch.empty(len(index), dtype=torch.int64)
    for _, part in parts:
        tensors = run.finished(part).tensors
        rows = torch.searchsorted(index, tensors["index"])
        adversarial[rows], adversarial_prediction[rows] = tensors["adversarial"], tensors["prediction"]
    return Points(
        labels=run.data.labels,
        prediction=prediction,
        broken_by=broken_by,
        perturbation_norm=norm,
        index=index,
        adversarial=adversarial,
        adversarial_prediction=adversarial_prediction,
        answers_vary=answers_vary,
    )


def _checks_and_flags(
    run: Run, checked: Block, points: Points, drifts: list[float | None], *, is_complete: bool
) -> tuple[list[CheckOutcome], list[Flag]]:
    """The checks of the network before and during the attacks and, if all attacks are finished, after them."""
    flags = [Flag.model_validate(flag) for flag in checked.record["flags"]]
    outcomes = [CheckOutcome.model_validate(check) for check in checked.record["checks"]]
    if run.attacks and not points.answers_vary:
        # Parts of earlier versions have no value for the drift.
        outcomes.append(belief.drift_check(drifts, run.classifier.dtype))
        remembers = belief.remembers(outcomes[-1])
        flags += [] if remembers is None else [remembers]
    if is_complete:
        outcomes += _checks_beyond(run)
        near_cliff, flag = _near_cliff(run, checked, points.broken_by == STANDS)
        outcomes.append(near_cliff)
        flags += [] if flag is None else [flag]
    return outcomes, flags


def _flags_of_counts(run: Run, clean: list[Block], points: Points, outcomes: list[AttackOutcome]) -> list[Flag]:
    """Flags that depend on the number of points with zero gradients, and on how many points each attack broke."""
    zero = [block.tensors["zero_gradient"] for block in clean if "zero_gradient" in block.tensors]
    flags = (
        checks.zero_gradients(int(torch.cat(zero).sum()), points.clean_correct) if zero else None,
        checks.square_improved(outcomes, len(run.data)),
        gap({each.attack: each.broken for each in outcomes}, len(run.data)),
    )
    return [flag for flag in flags if flag is not None]


def _is_missing(run: Run, position: int) -> bool:
    """Whether an attack ran on no block although there were unbroken points."""
    records = [run.records[part] for part in run.parts_of(position)]
    return bool(records) and all("not_run" in record for record in records)


def _near_cliff(run: Run, checked: Block, standing: Tensor) -> tuple[CheckOutcome, Flag | None]:
    if run.evaluation.protocol not in PROTOCOLS_WITH_MORE:
        reason = f"only after all attacks of the protocols {' and '.join(PROTOCOLS_WITH_MORE)} can it be said"
        return belief.not_run(("near_cliff",), reason)[0], None
    # Parts of earlier versions have no distances, nor have parts of networks whose float64 checks did not run.
    if "border_distance" not in checked.tensors:
        return belief.not_run(("near_cliff",), "its gradients in float64 were not looked at")[0], None
    return belief.near_cliff_check(checked.tensors["border_distance"], standing[checked.tensors["looked_at"]])


def _checks_beyond(run: Run) -> list[CheckOutcome]:
    """The outcomes of the attacks after the protocol's own, or why they did not run."""
    if run.evaluation.protocol not in PROTOCOLS_WITH_MORE:
        reason = f"only the protocols {' and '.join(PROTOCOLS_WITH_MORE)} run it"
        return belief.not_run(("repair", "transfer"), reason)
    found = [_check_beyond(run, "repair", run.num_own_attacks)]
    if len(run.attacks) > run.num_own_attacks + 1:
        transfer = _check_beyond(run, "transfer", run.num_own_attacks + 1)
        parts = run.parts_of(run.num_own_attacks + 1)
        sources = sorted({source for part in parts for source in run.records[part].get("sources", ())})
        if parts and not sources:
            return [*found, *belief.not_run(("transfer",), "no certificate of another network could be read")]
        return [*found, transfer.model_copy(update={"sources": tuple(sources)})]
    reason = "; ".join(run.others.unusable) or "there was no certificate of another network on these images"
    return [*found, *belief.not_run(("transfer",), reason)]


def _check_beyond(run: Run, name: CheckName, position: int) -> CheckOutcome:
    records = [run.records[part] for part in run.parts_of(position)]
    reasons = [record["not_run"] for record in records if "not_run" in record]
    if reasons and len(reasons) == len(records):
        return CheckOutcome(name=name, note=reasons[0])
    return CheckOutcome(
        name=name,
        value=float(sum(record["broken"] for record in records)),
        points=sum(record["points"] for record in records),
        note=f"it did not run on {len(reasons)} of {len(records)} blocks: {reasons[0]}" if reasons else "",
    )


def attack_outcome(run: Run, position: int) -> AttackOutcome:
    """The outcome of one attack, over all its blocks."""
    attack = run.attacks[position]
    records = [run.records[part] for part in run.parts_of(position)]

    def total(field: str) -> Any:
        return sum(record[field] for record in records)

    return AttackOutcome(
        attack=attack.title,
        points=total("points"),
        broken=total("broken"),
        discarded=total("discarded"),
        seconds=float(total("seconds")),
        loss=attack.loss,
        targets=attack.targets,
    )
