"""The first pass over an evaluation's points. Attacks run only on points whose clean image is classified correctly."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from gkl.errors import InvalidInput
from gkl.evaluation import checks
from gkl.evaluation.blocks import Block
from gkl.evaluation.run import Run
from gkl.outcome import PointsSoFar

_CLEAN_COST = 4


def run_clean(run: Run, mine: list[int]) -> None:
    """Classify the clean images of the blocks of these numbers, and note which points are classified correctly."""
    costs = sum(attack.cost for attack in run.attacks)
    left = float(sum(run.size(b) for b in mine) * (_CLEAN_COST + costs))
    points = sum(run.size(b) for b in mine)
    done = correct = 0
    for number in mine:
        run.progress.points = PointsSoFar(points=points, clean_done=done, clean_correct=correct)
        work = run.size(number) * _CLEAN_COST
        found = run.known(number)
        if found is None:
            run.progress.start_part("clean", run.detail(number, len(mine)), work=work, calls=2, left=left)
            started = time.perf_counter()
            x, y = run.points_of(number)
            prediction, zero = run.fitting(len(x), lambda x=x, y=y: _clean(run, x, y))  # type: ignore[misc]
            seconds = time.perf_counter() - started
            tensors = {"prediction": prediction}
            if zero is not None:
                tensors["zero_gradient"] = zero
            found = Block(tensors, run.record("clean", number, seconds))
            run.keep(number, found)
            run.progress.finish_part()
        else:
            run.progress.restore(work)
        left -= work
        run.standing[number] = found.tensors["prediction"] == run.data.labels[run.slices[number]]
        done, correct = done + run.size(number), correct + int(run.standing_in(number).sum())
    run.progress.points = PointsSoFar(points=points, clean_done=done, clean_correct=correct)


def _clean(run: Run, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
    # With the seed, a randomized model's answers depend on the block alone.
    torch.manual_seed(run.evaluation.seed)
    prediction = run.classifier.first_logits(x).argmax(1)
    if not run.attacks:
        return prediction.cpu(), None
    # Only points that can be attacked count: at a misclassified point, the DLR loss itself may be constant.
    zero = checks.zero_gradient_points(run.classifier, x, y)
    if zero is None:
        if run.evaluation.attack_names != ("square",):
            raise InvalidInput(
                "the model's answer does not depend on its input in a way that torch can differentiate; only "
                "the protocol 'custom' with 'square' alone can attack it"
            )
        zero = torch.ones(len(x), dtype=torch.bool)
    return prediction.cpu(), zero & (prediction == y).cpu()
