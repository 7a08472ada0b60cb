"""What the attacks of a protocol do to a model on given images, block by block.

The points are cut into fixed blocks of `batch_size` consecutive ones. Attack after attack takes, block by block, the
points that still stand; a point is broken when an attack returns an image inside the threat model that the model
misclassifies. Blocks know nothing of each other, so the verdict depends on the evaluation's spec alone: not on
restarts, and not on which process attacked which block.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gkl.attacks import perturbation, repair
from gkl.attacks.autoattack import Attack, make_attacks
from gkl.attacks.classifier import Classifier
from gkl.attacks.perturbation import is_allowed
from gkl.data import ImageSet, unit_range
from gkl.device import device_name, is_out_of_memory
from gkl.errors import InvalidInput
from gkl.evaluation import belief, checks
from gkl.evaluation.blocks import Block, Blocks
from gkl.evaluation.inputs import checked_images
from gkl.evaluation.progress import EvaluationProgress
from gkl.evaluation.transfer import OtherExamples
from gkl.outcome import (
    REPAIR,
    TRANSFER,
    AttackFinished,
    AttackOutcome,
    AttackSoFar,
    CheckName,
    CheckOutcome,
    Event,
    Flag,
    PointsSoFar,
    gap,
)
from gkl.outcome.flags import unrankable
from gkl.spec import PROTOCOLS_WITH_MORE, Evaluation

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

STANDS, MISCLASSIFIED = -1, -2
"""What `Measurement.broken_by` says of a point that no attack broke, and of one that needed none."""

_CLEAN_COST = 4
# Images of a block that are asked again after each attack on it.
_ASKED_AGAIN = 8
_ON_GRADIENTS: tuple[CheckName, ...] = ("wrong_gradients", "lost_slope", "zero_gradients", "coarse", "ties", "cliff")
_BOX_ROUNDING = 1e-5


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


@dataclass(frozen=True)
class Measurement:
    """The outcome point by point. N points, of which M were broken by attacks."""

    labels: Tensor
    """(N,) int64."""
    prediction: Tensor
    """(N,) int64: the class of the clean image."""
    broken_by: Tensor
    """(N,) int64: position of the attack in `attacks`, or STANDS, or MISCLASSIFIED."""
    perturbation_norm: Tensor
    """(N,) float64: distance of the adversarial example that broke the point, NaN where there is none."""
    index: Tensor
    """(M,) int64: the broken points, rising."""
    adversarial: Tensor
    """(M, channels, height, width) float32 in [0, 1]: their adversarial examples."""
    adversarial_prediction: Tensor
    """(M,) int64: the classes of those; -1 where the model answered NaN."""
    attacks: list[AttackOutcome]
    flags: list[Flag]
    answers_vary: bool
    device: str
    """Name of the processor or GPU; of all, where parts were run on several."""
    batch_size_used: int
    """Most images that the model was given at once."""
    seconds: float
    """Working time of all parts, also of those before an interruption."""
    checks: list[CheckOutcome] = field(default_factory=list)
    """What was checked of the network itself, and what could not be."""
    checks_seed: int | None = None
    """Seed of the points that the checks looked at, made for the run; None if they did not run."""

    @property
    def num_points(self) -> int:
        return len(self.labels)

    @property
    def clean_correct(self) -> int:
        return int((self.broken_by != MISCLASSIFIED).sum())

    @property
    def robust_correct(self) -> int:
        return int((self.broken_by == STANDS).sum())

    @property
    def unrankable(self) -> str | None:
        """Why the figure cannot be believed, in a sentence or two; None if nothing speaks against it."""
        return unrankable(self.flags)


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
    run = _Run(
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
        run.run(range(run.num_blocks), provisional)
        return run.measurement(len(run.attacks))


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
    run = _Run(
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
        run.run([number for number in range(run.num_blocks) if number in shard])


@dataclass(frozen=True)
class _Believed:
    """What the checks of the network itself came to."""

    seed: int | None
    """Of the points looked at; None if none were."""
    outcomes: list[CheckOutcome] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Points looked at and the distances of their borders, for what can be said of them after the attacks."""


class _Run:
    """One process's work on an evaluation.

    A part's number is its stage times the number of blocks plus its block. Stage 0 is the clean pass, then come the
    protocol's attacks, the checks, which have one part, and the attacks beyond the protocol.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageSet,
        evaluation: Evaluation,
        *,
        num_classes: int,
        blocks: Blocks | None,
        report: Callable[[Event], None],
        should_stop: Callable[[], bool],
        device: torch.device | None,
        others: Sequence[Path] = (),
    ) -> None:
        self.data = checked_images(data, num_classes, evaluation)
        self.model, self.evaluation, self.report = model, evaluation, report
        self.device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
        self.progress = EvaluationProgress(report, should_stop)
        self.classifier = Classifier(model, num_classes, self.progress.on_call)
        self.blocks = blocks or Blocks(None, {})
        self.slices = [
            slice(start, min(start + evaluation.batch_size, len(data)))
            for start in range(0, len(data), evaluation.batch_size)
        ]
        self.num_blocks = len(self.slices)
        self.attacks: list[Attack] = []
        if evaluation.threat_model is not None:
            self.attacks = make_attacks(self.classifier, evaluation, num_classes=num_classes, device=self.device)
        self.num_own_attacks = len(self.attacks)
        if evaluation.protocol in PROTOCOLS_WITH_MORE:
            self.attacks.append(
                Attack(REPAIR, repair.cost(num_classes), repair.calls(num_classes), self._repaired, loss="margin")
            )
        self.others = OtherExamples(others, tuple(self.data.images.shape[1:]))
        has_tried = any(self.blocks.get(self._part(self.num_own_attacks + 3, n)) for n in range(self.num_blocks))
        if evaluation.protocol in PROTOCOLS_WITH_MORE and (self.others.files or has_tried):
            tries = max(1, len(self.others.files))
            self.attacks.append(Attack(TRANSFER, tries, tries, lambda x, _: x))
        self.copies = belief.Copies(None, None, "nothing was attacked")
        self.most_repaired_at_once: int | None = None
        # Of the parts that are done: reading their files again only for these would take the images along.
        self.records: dict[int, Mapping[str, Any]] = {}
        # (n,) bool for each block of n points, None until its clean pass is known.
        self.standing: list[Tensor | None] = [None] * self.num_blocks

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The model as it is evaluated; afterwards as it came."""
        self.came_in_training_mode = checks.training_mode(self.model)
        modes = [(module, module.training) for module in self.model.modules()]
        gradients = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        # Batch statistics must not move under attack, and gradients are only ever wanted for images.
        self.model.eval().requires_grad_(False)
        # The attacks seed torch's global streams; a caller's are left as they were, on the one device that is used.
        is_cuda = self.device.type == "cuda"
        current = torch.cuda.device(self.device) if is_cuda else nullcontext()
        with current, torch.random.fork_rng(devices=[self.device] if is_cuda else []):
            try:
                if self.attacks:
                    # Before anything is asked of the network: it may remember.
                    self.copies = belief.copies_of(self.model, self.classifier.num_classes, self.progress.on_call)
                yield
            finally:
                for module, mode in modes:
                    module.training = mode
                for parameter, flag in gradients:
                    parameter.requires_grad_(flag)

    # --- the stages ----------------------------------------------------------------------------------------------

    def run(self, numbers: Iterable[int], provisional: Callable[[Measurement], None] | None = None) -> None:
        """All stages on these blocks. With `provisional` they are all blocks."""
        mine = list(numbers)
        self._run_clean(mine)
        if provisional is not None or 0 in mine:
            self._run_checks()
        names = [attack.name for attack in self.attacks]
        for position, attack in enumerate(self.attacks):
            if attack.name == TRANSFER and provisional is None:
                # A matter of seconds, for whoever puts the shards together and has the other networks' certificates.
                continue
            self._run_attack(position, mine)
            if provisional is None:
                continue
            outcome = self._attack_outcome(position)
            _log.info("%s broke %d of %d points", attack.name, outcome.broken, outcome.points)
            self.report(AttackFinished(outcome=outcome))
            is_last = position == len(self.attacks) - 1
            if attack.name == "APGD-T" and "APGD-CE" in names[:position] and not is_last:
                provisional(self.measurement(position + 1))

    def _run_clean(self, mine: list[int]) -> None:
        costs = sum(attack.cost for attack in self.attacks)
        left = float(sum(self._size(b) for b in mine) * (_CLEAN_COST + costs))
        points = sum(self._size(b) for b in mine)
        done = correct = 0
        for number in mine:
            self.progress.points = PointsSoFar(points=points, clean_done=done, clean_correct=correct)
            work = self._size(number) * _CLEAN_COST
            found = self._known(number)
            if found is None:
                self.progress.start_part("clean", self._detail(number, len(mine)), work=work, calls=2, left=left)
                started = time.perf_counter()
                x, y = self._points(number)
                prediction, zero = self._fitting(len(x), lambda x=x, y=y: self._clean(x, y))  # type: ignore[misc]
                seconds = time.perf_counter() - started
                tensors = {"prediction": prediction}
                if zero is not None:
                    tensors["zero_gradient"] = zero
                found = Block(tensors, self._record("clean", number, seconds))
                self._keep(number, found)
                self.progress.finish_part()
            else:
                self.progress.restore(work)
            left -= work
            self.standing[number] = found.tensors["prediction"] == self.data.labels[self.slices[number]]
            done, correct = done + self._size(number), correct + int(self._standing(number).sum())
        self.progress.points = PointsSoFar(points=points, clean_done=done, clean_correct=correct)

    def _clean(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        # A randomized model's answers too depend on nothing but the block.
        torch.manual_seed(self.evaluation.seed)
        prediction = self.classifier.first_logits(x).argmax(1)
        if not self.attacks:
            return prediction.cpu(), None
        # Only where there is something to attack: of a misclassified point DLR may be constant by its own form.
        zero = checks.zero_gradient_points(self.classifier, x, y)
        if zero is None:
            if self.evaluation.attack_names != ("square",):
                raise InvalidInput(
                    "the model's answer does not depend on its input in a way that torch can differentiate; only "
                    "the protocol 'custom' with 'square' alone can attack it"
                )
            zero = torch.ones(len(x), dtype=torch.bool)
        return prediction.cpu(), zero & (prediction == y).cpu()

    def _run_checks(self) -> None:
        """What only the first block is asked, once for the whole evaluation."""
        number = self._part(self.num_own_attacks + 1, 0)
        known = self._known(number)
        # A part of an earlier version lacks the newer checks.
        if known is not None and "checks" in known.record:
            return
        self.progress.start_part("checks", "", work=0, calls=1, left=self._left_at_most())
        started = time.perf_counter()
        x, y = self._points(0)
        flags, answers_vary = self._fitting(len(x), lambda: self._checks(x, y))
        believed = self._believe(answers_vary=answers_vary)
        named = {flag.name for flag in flags}
        flags += [flag for flag in believed.flags if flag.name not in named]
        record = self._record("checks", 0, time.perf_counter() - started)
        record |= {"flags": [flag.model_dump() for flag in flags], "answers_vary": answers_vary}
        record |= {"checks": [each.model_dump() for each in believed.outcomes], "checks_seed": believed.seed}
        self._keep(number, Block(believed.tensors, record))

    def _believe(self, *, answers_vary: bool) -> _Believed:
        """Whether attacks see the network as it is."""
        threat_model, fresh, precise = self.evaluation.threat_model, self.copies.fresh, self.copies.precise
        if threat_model is None:
            return _Believed(None)
        if answers_vary:
            return _Believed(None, belief.not_run((*_ON_GRADIENTS, "two_faces"), "the network's answers vary"))
        seed = secrets.randbelow(2**31)
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.data), generator=generator)[: belief.number_of_points(len(self.data))]
        x = unit_range(self.data.images[chosen]).to(self.device)
        y = self.data.labels[chosen].to(self.device)
        outcomes: list[CheckOutcome] = []
        flags: list[Flag | None] = []
        tensors = {}
        try:
            probes = self._checking(len(x), lambda: belief.Probes(self.classifier, x, y, threat_model, generator))
        except InvalidInput as error:
            return _Believed(seed, belief.not_run((*_ON_GRADIENTS, "two_faces"), str(error)))
        reason = self.copies.reason
        if precise is not None:
            try:
                found, raised = self._checking(len(x), lambda: belief.gradient_checks(self.classifier, precise, probes))
                far = self._checking(len(x), lambda: belief.border_distances(precise, probes))
            except InvalidInput as error:
                # A network may answer once in float64 and not the next time.
                precise_fails, reason = True, f"in float64: {error}"
            else:
                precise_fails = False
                cliff, flag = belief.cliff_check(far, x[0].numel(), threat_model)
                tensors = {"looked_at": chosen, "border_distance": far}
                outcomes += [*found, cliff]
                flags += [*raised, flag]
        if precise is None or precise_fails:
            outcomes += belief.not_run(_ON_GRADIENTS, reason)
        if fresh is None:
            outcomes += belief.not_run(("two_faces",), self.copies.reason)
        else:
            try:
                two_faces, flag = self._checking(
                    len(x), lambda: belief.two_faces_check(self.classifier, fresh, probes.images)
                )
            except InvalidInput as error:
                # A network that takes gradients itself cannot do so in inference mode.
                outcomes += belief.not_run(("two_faces",), str(error))
            else:
                outcomes.append(two_faces)
                flags.append(flag)
        return _Believed(seed, outcomes, [flag for flag in flags if flag is not None], tensors)

    def _drift(self, number: int, x: Tensor) -> float | None:
        """After an attack on a block, on images that the network was not asked before."""
        assert self.evaluation.threat_model is not None
        fresh, threat_model = self.copies.fresh, self.evaluation.threat_model
        if fresh is None:
            return None
        seed = secrets.randbelow(2**31)
        asked = x[:_ASKED_AGAIN]
        try:
            return self._checking(len(asked), lambda: belief.drift(self.classifier, fresh, asked, threat_model, seed))
        except InvalidInput as error:
            _log.warning("after the attack the network was not compared with its copy: %s", error)
            return None

    def _left_at_most(self) -> float:
        costs = sum(attack.cost for attack in self.attacks)
        return float(costs * sum(int(standing.sum()) for standing in self.standing if standing is not None))

    def _checks(self, x: Tensor, y: Tensor) -> tuple[list[Flag], bool]:
        torch.manual_seed(self.evaluation.seed)
        flags: list[Flag | None] = []
        distance = checks.answers_differ(self.classifier, x, y)
        perturbed = None
        if self.evaluation.threat_model is not None:
            noisy = perturbation.noise_at_the_border(x, self.evaluation.threat_model)
            self.classifier.first_logits(noisy, "test images with noise inside the threat model")
            perturbed = checks.answers_differ(self.classifier, noisy, y)
        # The protocol 'rand' is made for such models.
        if self.evaluation.protocol != "rand":
            if distance is not None:
                flags.append(checks.randomized(distance))
            elif perturbed is not None:
                flags.append(checks.randomized_when_perturbed(perturbed))
        flags.append(checks.probabilities(self.classifier.first_logits(x)))
        flags.append(checks.dynamic(self.classifier, x))
        answers_vary = distance is not None or perturbed is not None
        if not answers_vary:
            dependence = checks.batch_dependence(self.classifier, x)
            flags.append(dependence)
            answers_vary = dependence is not None
        if self.came_in_training_mode or checks.training_mode(self.model):
            flags.append(checks.came_in_training_mode())
        return [flag for flag in flags if flag is not None], answers_vary

    def _run_attack(self, position: int, mine: list[int]) -> None:
        attack = self.attacks[position]
        later = sum(other.cost for other in self.attacks[position + 1 :])
        waiting = list(mine)
        so_far = AttackSoFar(attack=attack.name, points=self._count(mine), done=0, broken=0)
        for number in mine:
            self._tell_of(position, so_far)
            standing = self._standing(number)
            entering = standing.nonzero().squeeze(1)
            work = float(attack.cost * len(entering))
            left = float(attack.cost * self._count(waiting) + later * self._count(mine))
            waiting.remove(number)
            if len(entering) == 0:
                continue
            part = self._part(self._stage(position), number)
            found = self._known(part)
            earlier: Block | None = None
            known_others = found.record.get("sources", ()) if found is not None and attack.name == TRANSFER else None
            if known_others is not None and self.others.files.keys() - set(known_others):
                # There are certificates now that an interrupted run did not have.
                found, earlier = None, found
            if found is None:
                detail = f"{self._count(mine)} points left, {self._detail(number, len(mine))}"
                self.progress.start_part(attack.name, detail, work=work, calls=attack.calls, left=left)
                try:
                    found = self._attack_block(attack, number, entering, earlier)
                except InvalidInput as error:
                    if position < self.num_own_attacks:
                        raise
                    _log.warning("%s did not run on block %d: %s", attack.name, number + 1, error)
                    # What an interrupted run has found stays found.
                    found = earlier or self._not_run(attack, number, str(error))
                self._keep(part, found)
                self.progress.finish_part()
            else:
                self.progress.restore(work)
            broken = found.tensors["index"] - self.slices[number].start
            standing[broken] = False
            so_far = so_far.model_copy(
                update={"done": so_far.done + len(entering), "broken": so_far.broken + len(broken)}
            )
        self._tell_of(position, so_far)

    def _tell_of(self, position: int, attack: AttackSoFar) -> None:
        """With every report from now on, in the place of what was said of this attack before."""
        points = self.progress.points
        assert points is not None, "the clean pass comes first"
        self.progress.points = points.model_copy(update={"attacks": (*points.attacks[:position], attack)})

    def _attack_block(self, attack: Attack, number: int, entering: Tensor, earlier: Block | None) -> Block:
        """Attack the entering points (n,) of a block; each is judged again from the image that came back."""
        started = time.perf_counter()
        x, y = self._points(number)
        x, y = x[entering], y[entering]
        index = entering + self.slices[number].start
        perturb = partial(self._transferred, index, earlier) if attack.name == TRANSFER else attack.perturb

        def attempt() -> tuple[Tensor, Tensor]:
            # An attack seeds the streams itself, but only after it has asked the model once.
            torch.manual_seed(self.evaluation.seed)
            x_adv = _into_box(perturb(x, y).detach())
            return x_adv, self.classifier.predict(x_adv)

        x_adv, prediction = self._fitting(len(x), attempt)
        assert self.evaluation.threat_model is not None
        allowed, size = is_allowed(x_adv, x, self.evaluation.threat_model)
        fooled = prediction != y
        broken = (fooled & allowed).cpu()
        discarded = int((fooled & ~allowed).sum())
        if discarded:
            _log.warning("%s returned %d images outside the threat model; not counted", attack.name, discarded)
        record = self._record(attack.name, number, time.perf_counter() - started)
        record |= {"points": len(entering), "broken": int(broken.sum()), "discarded": discarded}
        record["drift"] = self._drift(number, x)
        if attack.name == TRANSFER:
            record["sources"] = sorted(self.others.read | set(earlier.record["sources"] if earlier else ()))
        return Block(
            {
                "index": index[broken],
                "adversarial": x_adv.cpu()[broken],
                "prediction": prediction.cpu()[broken],
                "norm": size.cpu()[broken],
            },
            record,
        )

    def _repaired(self, x: Tensor, y: Tensor) -> Tensor:
        """
        Raises:
            InvalidInput: there is no copy in float64, it gives no answer, or it does not fit into the device's memory.
        """
        precise = self.copies.precise
        if precise is None:
            raise InvalidInput(self.copies.reason)
        generator = torch.Generator().manual_seed(self.evaluation.seed)
        found = self._repaired_in_parts(precise, x, y, generator, longer=False)
        standing = (self.classifier.predict(found) == y).nonzero().squeeze(1)
        if len(standing) and repair.is_suspicious(len(x) - len(standing), len(x)):
            found[standing] = self._repaired_in_parts(precise, x[standing], y[standing], generator, longer=True)
        return found

    def _repaired_in_parts(
        self, precise: Classifier, x: Tensor, y: Tensor, generator: torch.Generator, *, longer: bool
    ) -> Tensor:
        threat_model, before = self.evaluation.threat_model, precise.largest
        assert threat_model is not None
        at_once = min(self.most_repaired_at_once or len(x), self.classifier.largest or len(x), len(x))
        # The attack splits its images itself: parts would hide which units are the same for all of them.
        precise.largest = None
        try:
            while True:
                try:
                    parts = zip(x.split(at_once), y.split(at_once), strict=True)
                    found = [
                        repair.perturb(
                            self.classifier, precise, *part, threat_model, generator=generator, longer=longer
                        )
                        for part in parts
                    ]
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise InvalidInput(f"the mended network raised {type(error).__name__}: {error}") from error
                else:
                    return torch.cat(found)
                if at_once == 1:
                    raise InvalidInput("the device has too little memory for one image in float64")
                at_once = self.most_repaired_at_once = at_once // 2
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        finally:
            precise.largest = before

    def _transferred(self, index: Tensor, earlier: Block | None, x: Tensor, y: Tensor) -> Tensor:
        assert self.evaluation.threat_model is not None
        found = self.others.perturb(self.classifier, x, y, index, self.evaluation.threat_model)
        if earlier is not None:
            known = earlier.tensors["index"]
            rows = torch.isin(index, known)
            found[rows] = earlier.tensors["adversarial"][torch.searchsorted(known, index[rows])].to(found)
        return found

    def _not_run(self, attack: Attack, number: int, reason: str) -> Block:
        """What an attack beyond the protocol's leaves where it cannot run: nothing but the reason."""
        nothing = self._points(number)[0][:0].cpu()
        none = torch.empty(0, dtype=torch.int64)
        record = self._record(attack.name, number, 0.0)
        record |= {"points": 0, "broken": 0, "discarded": 0, "drift": None, "not_run": reason}
        return Block(
            {"index": none, "adversarial": nothing, "prediction": none, "norm": torch.empty(0, dtype=torch.float64)},
            record,
        )

    # --- the result ----------------------------------------------------------------------------------------------

    def measurement(self, num_attacks: int) -> Measurement:
        """What the parts of all blocks, through the first so many attacks, come to."""
        clean = [self._finished(number) for number in range(self.num_blocks)]
        prediction = torch.cat([block.tensors["prediction"] for block in clean])
        broken_by = torch.where(prediction == self.data.labels, STANDS, MISCLASSIFIED)
        norm = torch.full((len(self.data),), torch.nan, dtype=torch.float64)
        ran = [position for position in range(num_attacks) if not self._is_missing(position)]
        parts = [(place, part) for place, position in enumerate(ran) for part in self._parts_of(position)]
        for place, part in parts:
            tensors = self._finished(part).tensors
            broken_by[tensors["index"]] = place
            norm[tensors["index"]] = tensors["norm"]
        index = (broken_by >= 0).nonzero().squeeze(1)
        # Read a second time, one part after the other: the images of all of them may be gigabytes.
        adversarial = torch.empty((len(index), *self.data.images.shape[1:]))
        adversarial_prediction = torch.empty(len(index), dtype=torch.int64)
        for _, part in parts:
            tensors = self._finished(part).tensors
            rows = torch.searchsorted(index, tensors["index"])
            adversarial[rows], adversarial_prediction[rows] = tensors["adversarial"], tensors["prediction"]
        outcomes = [self._attack_outcome(position) for position in ran]
        checked = self._finished(self._part(self.num_own_attacks + 1, 0))
        zero = [block.tensors["zero_gradient"] for block in clean if "zero_gradient" in block.tensors]
        flags = [Flag.model_validate(flag) for flag in checked.record["flags"]]
        outcomes_of_checks = [CheckOutcome.model_validate(check) for check in checked.record["checks"]]
        if self.attacks and not checked.record["answers_vary"]:
            # A part of an earlier version has none.
            drifts = [self.records[part].get("drift") for _, part in parts]
            outcomes_of_checks.append(belief.drift_check(drifts, self.classifier.dtype))
            remembers = belief.remembers(outcomes_of_checks[-1])
            flags += [] if remembers is None else [remembers]
        if self.attacks and num_attacks == len(self.attacks):
            outcomes_of_checks += self._checks_beyond()
            near_cliff, flag = self._near_cliff(checked, broken_by == STANDS)
            outcomes_of_checks.append(near_cliff)
            flags += [] if flag is None else [flag]
        named = {flag.name for flag in flags}
        flags += [
            flag
            for flag in (
                checks.zero_gradients(int(torch.cat(zero).sum()), int((prediction == self.data.labels).sum()))
                if zero
                else None,
                checks.square_improved(outcomes, len(self.data)),
                gap({each.attack: each.broken for each in outcomes}, len(self.data)),
            )
            if flag is not None and flag.name not in named
        ]
        every = [block.record for block in (*clean, checked)] + [self.records[part] for _, part in parts]
        return Measurement(
            labels=self.data.labels,
            prediction=prediction,
            broken_by=broken_by,
            perturbation_norm=norm,
            index=index,
            adversarial=adversarial,
            adversarial_prediction=adversarial_prediction,
            attacks=outcomes,
            flags=flags,
            checks=outcomes_of_checks,
            checks_seed=checked.record["checks_seed"],
            answers_vary=checked.record["answers_vary"],
            device=", ".join(sorted({record["device"] for record in every})),
            batch_size_used=min(record["batch_size"] for record in every),
            seconds=sum(record["seconds"] for record in every),
        )

    def _stage(self, position: int) -> int:
        """Of an attack. Those beyond the protocol come after the checks: parts of earlier versions keep their place."""
        return position + 1 if position < self.num_own_attacks else position + 2

    def _parts_of(self, position: int) -> list[int]:
        """An attack's parts; a block in which nothing stood has none."""
        parts = (self._part(self._stage(position), number) for number in range(self.num_blocks))
        return [part for part in parts if part in self.records]

    def _is_missing(self, position: int) -> bool:
        """Whether an attack ran nowhere though points stood."""
        records = [self.records[part] for part in self._parts_of(position)]
        return bool(records) and all("not_run" in record for record in records)

    def _near_cliff(self, checked: Block, standing: Tensor) -> tuple[CheckOutcome, Flag | None]:
        if self.evaluation.protocol not in PROTOCOLS_WITH_MORE:
            reason = f"only after all attacks of the protocols {' and '.join(PROTOCOLS_WITH_MORE)} can it be said"
            return belief.not_run(("near_cliff",), reason)[0], None
        # Parts of earlier versions have none, nor those of a network without gradients in float64.
        if "border_distance" not in checked.tensors:
            return belief.not_run(("near_cliff",), "its gradients in float64 were not looked at")[0], None
        return belief.near_cliff_check(checked.tensors["border_distance"], standing[checked.tensors["looked_at"]])

    def _checks_beyond(self) -> list[CheckOutcome]:
        """What the attacks beyond the protocol's found, or why they did not run."""
        if self.evaluation.protocol not in PROTOCOLS_WITH_MORE:
            reason = f"only the protocols {' and '.join(PROTOCOLS_WITH_MORE)} run it"
            return belief.not_run(("repair", "transfer"), reason)
        found = [self._check_beyond("repair", self.num_own_attacks)]
        if len(self.attacks) > self.num_own_attacks + 1:
            transfer = self._check_beyond("transfer", self.num_own_attacks + 1)
            parts = self._parts_of(self.num_own_attacks + 1)
            sources = sorted({source for part in parts for source in self.records[part].get("sources", ())})
            if parts and not sources:
                return [*found, *belief.not_run(("transfer",), "no certificate of another network could be read")]
            return [*found, transfer.model_copy(update={"sources": tuple(sources)})]
        reason = "; ".join(self.others.unusable) or "there was no certificate of another network on these images"
        return [*found, *belief.not_run(("transfer",), reason)]

    def _check_beyond(self, name: CheckName, position: int) -> CheckOutcome:
        records = [self.records[part] for part in self._parts_of(position)]
        reasons = [record["not_run"] for record in records if "not_run" in record]
        if reasons and len(reasons) == len(records):
            return CheckOutcome(name=name, note=reasons[0])
        return CheckOutcome(
            name=name,
            value=float(sum(record["broken"] for record in records)),
            points=sum(record["points"] for record in records),
            note=f"it did not run on {len(reasons)} of {len(records)} blocks: {reasons[0]}" if reasons else "",
        )

    def _attack_outcome(self, position: int) -> AttackOutcome:
        attack = self.attacks[position]
        records = [self.records[part] for part in self._parts_of(position)]

        def total(field: str) -> Any:
            return sum(record[field] for record in records)

        return AttackOutcome(
            attack=attack.name,
            points=total("points"),
            broken=total("broken"),
            discarded=total("discarded"),
            seconds=float(total("seconds")),
            loss=attack.loss,
            targets=attack.targets,
        )

    def _finished(self, part: int) -> Block:
        block = self.blocks.get(part)
        if block is None:
            raise InvalidInput("a part of this evaluation was removed or damaged while it ran; start it again")
        return block

    # --- shared --------------------------------------------------------------------------------------------------

    def _fitting(self, num_images: int, attempt: Callable[[], _T]) -> _T:
        """Try, with half as many images given to the model at once after each time that memory was too small."""
        while True:
            try:
                return attempt()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                smaller = self.classifier.halve(num_images)
                if smaller is None:
                    raise
            # Out of the handler: the error's traceback holds the tensors that were too many.
            _log.warning("the device is out of memory; the model is now given %d images at once", smaller)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.progress.restart_part()

    def _checking(self, num_images: int, attempt: Callable[[], _T]) -> _T:
        """Like `_fitting` for a check, which also uses copies in wider formats: what follows keeps its batches.

        Raises:
            InvalidInput: the device's memory is too small for it.
        """
        asked = [each for each in (self.classifier, self.copies.fresh, self.copies.precise) if each is not None]
        before = [each.largest for each in asked]
        for each in asked:
            each.largest = min(self.classifier.largest or num_images, num_images)
        try:
            while True:
                try:
                    return attempt()
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                if any(each.halve(num_images) is None for each in asked):
                    raise InvalidInput("the device has too little memory for this check")
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        finally:
            for each, largest in zip(asked, before, strict=True):
                each.largest = largest

    def _known(self, part: int) -> Block | None:
        block = self.blocks.get(part)
        if block is not None:
            self.records[part] = block.record
            if block.record["batch_size"] < self.evaluation.batch_size:
                # What did not fit before the interruption would not fit now.
                self.classifier.largest = min(self.classifier.largest or len(self.data), block.record["batch_size"])
        return block

    def _keep(self, part: int, block: Block) -> None:
        self.blocks.put(part, block)
        self.records[part] = block.record

    def _points(self, number: int) -> tuple[Tensor, Tensor]:
        part = self.slices[number]
        # Converted before it is moved: a GPU divides by 255 in another way, and a stranger's check does it on a CPU.
        # A copy: what the model does to its input must not reach the caller's images.
        return unit_range(self.data.images[part].clone()).to(self.device), self.data.labels[part].to(self.device)

    def _size(self, number: int) -> int:
        return self.slices[number].stop - self.slices[number].start

    def _standing(self, number: int) -> Tensor:
        standing = self.standing[number]
        assert standing is not None, "the clean pass comes first"
        return standing

    def _count(self, numbers: Iterable[int]) -> int:
        return sum(int(self._standing(number).sum()) for number in numbers)

    def _part(self, stage: int, number: int) -> int:
        return stage * self.num_blocks + number

    def _detail(self, number: int, of: int) -> str:
        place = f"block {number + 1} of {self.num_blocks}"
        return place if of == self.num_blocks else f"{place}, {of} in this shard"

    def _record(self, stage: str, number: int, seconds: float) -> dict[str, Any]:
        return {
            "stage": stage,
            "block": number,
            "seed": self.evaluation.seed,
            "seconds": seconds,
            "device": device_name(self.device),
            "batch_size": min(self.classifier.largest or self.evaluation.batch_size, self.evaluation.batch_size),
        }


def _into_box(x_adv: Tensor) -> Tensor:
    """L1's projection leaves the box by rounding; more than that is left for the judge."""
    clamped = x_adv.clamp(0, 1)
    return clamped.where((clamped - x_adv).abs() <= _BOX_ROUNDING, x_adv)
