"""Runs the checks of the network itself: once on the first block, and after each attack on a block."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gkl.attacks import perturbation
from gkl.data import unit_range
from gkl.errors import InvalidInput
from gkl.evaluation import belief, checks
from gkl.evaluation.blocks import Block
from gkl.evaluation.run import Run
from gkl.outcome import CheckName, CheckOutcome, Flag
from gkl.spec import ThreatModel

_log = logging.getLogger(__name__)

# Images of a block that the network classifies again, with noise, after each attack on the block.
_ASKED_AGAIN = 8
_ON_GRADIENTS: tuple[CheckName, ...] = ("wrong_gradients", "lost_slope", "zero_gradients", "coarse", "ties", "cliff")


@dataclass(frozen=True)
class _Believed:
    """The results of the checks of the network itself."""

    seed: int | None
    """Seed of the checked points; None if the checks did not run."""
    outcomes: list[CheckOutcome] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """The checked points and their distances to the decision border, to be compared with the attacks' results."""


def run_checks(run: Run) -> None:
    """Run the checks on the first block, once for the whole evaluation, and keep them as a part."""
    number = run.part(run.num_own_attacks + 1, 0)
    known = run.known(number)
    # Parts of earlier versions lack the newer checks.
    if known is not None and "checks" in known.record:
        return
    run.progress.start_part("checks", "", work=0, calls=1, left=_left_at_most(run))
    started = time.perf_counter()
    x, y = run.points_of(0)
    flags, answers_vary = run.fitting(len(x), lambda: _checks(run, x, y))
    believed = _believe(run, answers_vary=answers_vary)
    named = {flag.name for flag in flags}
    flags += [flag for flag in believed.flags if flag.name not in named]
    record = run.record("checks", 0, time.perf_counter() - started)
    record |= {"flags": [flag.model_dump() for flag in flags], "answers_vary": answers_vary}
    record |= {"checks": [each.model_dump() for each in believed.outcomes], "checks_seed": believed.seed}
    run.keep(number, Block(believed.tensors, record))


def _left_at_most(run: Run) -> float:
    costs = sum(attack.cost for attack in run.attacks)
    return float(costs * sum(int(standing.sum()) for standing in run.standing if standing is not None))


def _checks(run: Run, x: Tensor, y: Tensor) -> tuple[list[Flag], bool]:
    torch.manual_seed(run.evaluation.seed)
    flags: list[Flag | None] = []
    distance = checks.answers_differ(run.classifier, x, y)
    perturbed = None
    if run.evaluation.threat_model is not None:
        noisy = perturbation.noise_at_the_border(x, run.evaluation.threat_model)
        run.classifier.first_logits(noisy, "test images with noise inside the threat model")
        perturbed = checks.answers_differ(run.classifier, noisy, y)
    # The protocol 'rand' is made for such models.
    if run.evaluation.protocol != "rand":
        if distance is not None:
            flags.append(checks.randomized(distance))
        elif perturbed is not None:
            flags.append(checks.randomized_when_perturbed(perturbed))
    flags.append(checks.probabilities(run.classifier.first_logits(x)))
    flags.append(checks.dynamic(run.classifier, x))
    answers_vary = distance is not None or perturbed is not None
    if not answers_vary:
        dependence = checks.batch_dependence(run.classifier, x)
        flags.append(dependence)
        answers_vary = dependence is not None
    if run.came_in_training_mode or checks.training_mode(run.model):
        flags.append(checks.came_in_training_mode())
    return [flag for flag in flags if flag is not None], answers_vary


def _believe(run: Run, *, answers_vary: bool) -> _Believed:
    """Check whether gradient attacks see the network as it is."""
    threat_model = run.evaluation.threat_model
    if threat_model is None:
        return _Believed(None)
    if answers_vary:
        return _Believed(None, belief.not_run((*_ON_GRADIENTS, "two_faces"), "the network's answers vary"))
    seed = secrets.randbelow(2**31)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(run.data), generator=generator)[: belief.number_of_points(len(run.data))]
    x = unit_range(run.data.images[chosen]).to(run.device)
    y = run.data.labels[chosen].to(run.device)
    try:
        probes = run.checking(len(x), lambda: belief.Probes(run.classifier, x, y, threat_model, generator))
    except InvalidInput as error:
        return _Believed(seed, belief.not_run((*_ON_GRADIENTS, "two_faces"), str(error)))
    outcomes, flags, far = _gradient_checks(run, probes, x, threat_model)
    two_faces, flag = _two_faces(run, probes, len(x))
    tensors = {} if far is None else {"looked_at": chosen, "border_distance": far}
    return _Believed(seed, [*outcomes, *two_faces], [each for each in (*flags, flag) if each is not None], tensors)


def _gradient_checks(
    run: Run, probes: belief.Probes, x: Tensor, threat_model: ThreatModel
) -> tuple[list[CheckOutcome], list[Flag | None], Tensor | None]:
    """The checks of gradients in float64; the last value is the points' distances to the border, or None."""
    precise = run.copies.precise
    if precise is None:
        return belief.not_run(_ON_GRADIENTS, run.copies.reason), [], None
    try:
        found, raised = run.checking(len(x), lambda: belief.gradient_checks(run.classifier, precise, probes))
        far = run.checking(len(x), lambda: belief.border_distances(precise, probes))
    except InvalidInput as error:
        # A network may return logits in float64 once and fail the next time.
        return belief.not_run(_ON_GRADIENTS, f"in float64: {error}"), [], None
    cliff, flag = belief.cliff_check(far, x[0].numel(), threat_model)
    return [*found, cliff], [*raised, flag], far


def _two_faces(run: Run, probes: belief.Probes, num_images: int) -> tuple[list[CheckOutcome], Flag | None]:
    """Check whether the network's answers differ when a gradient is computed."""
    fresh = run.copies.fresh
    if fresh is None:
        return belief.not_run(("two_faces",), run.copies.reason), None
    try:
        found, flag = run.checking(num_images, lambda: belief.two_faces_check(run.classifier, fresh, probes.images))
    except InvalidInput as error:
        # A network that computes gradients itself fails in inference mode.
        return belief.not_run(("two_faces",), str(error)), None
    return [found], flag


def drift_after(run: Run, number: int, x: Tensor) -> float | None:
    """The drift after an attack on a block, on new images near x (B, *); None if it could not be measured."""
    assert run.evaluation.threat_model is not None
    fresh, threat_model = run.copies.fresh, run.evaluation.threat_model
    if fresh is None:
        return None
    seed = secrets.randbelow(2**31)
    asked = x[:_ASKED_AGAIN]
    try:
        return run.checking(len(asked), lambda: belief.drift(run.classifier, fresh, asked, threat_model, seed))
    except InvalidInput as error:
        _log.warning("after the attack the network was not compared with its copy: %s", error)
        return None
