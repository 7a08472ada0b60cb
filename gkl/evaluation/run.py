"""The state of one process's work on an evaluation: its model, its blocks, and which parts are finished.

Points are cut into fixed blocks of `batch_size` consecutive ones; a part is one stage on one block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gkl.attacks import repair
from gkl.attacks.autoattack import Attack, make_attacks
from gkl.attacks.classifier import Classifier
from gkl.data import ImageSet, unit_range
from gkl.device import device_name, is_out_of_memory
from gkl.errors import InvalidInput
from gkl.evaluation import belief, checks
from gkl.evaluation.blocks import Block, Blocks
from gkl.evaluation.inputs import checked_images
from gkl.evaluation.progress import EvaluationProgress
from gkl.evaluation.transfer import OtherExamples
from gkl.outcome import Event
from gkl.spec import PROTOCOLS_WITH_MORE, Evaluation

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def _set_later(x: Tensor, _: Tensor) -> Tensor:
    """In the place of attacks that need more than images and labels (`gkl.evaluation.beyond_autoattack`)."""
    return x


class Run:
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
                Attack("repair", repair.cost(num_classes), repair.calls(num_classes), _set_later, loss="margin")
            )
        self.others = OtherExamples(others, tuple(self.data.images.shape[1:]))
        has_tried = any(self.blocks.get(self.part(self.num_own_attacks + 3, n)) for n in range(self.num_blocks))
        if evaluation.protocol in PROTOCOLS_WITH_MORE and (self.others.files or has_tried):
            tries = max(1, len(self.others.files))
            self.attacks.append(Attack("transfer", tries, tries, _set_later))
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

    # --- parts and points -------------------------------------------------------------------------------------------

    def known(self, part: int) -> Block | None:
        block = self.blocks.get(part)
        if block is not None:
            self.records[part] = block.record
            if block.record["batch_size"] < self.evaluation.batch_size:
                # What did not fit before the interruption would not fit now.
                self.classifier.largest = min(self.classifier.largest or len(self.data), block.record["batch_size"])
        return block

    def keep(self, part: int, block: Block) -> None:
        self.blocks.put(part, block)
        self.records[part] = block.record

    def finished(self, part: int) -> Block:
        block = self.blocks.get(part)
        if block is None:
            raise InvalidInput("a part of this evaluation was removed or damaged while it ran; start it again")
        return block

    def part(self, stage: int, number: int) -> int:
        return stage * self.num_blocks + number

    def stage(self, position: int) -> int:
        """Of an attack. Those beyond the protocol come after the checks: parts of earlier versions keep their place."""
        return position + 1 if position < self.num_own_attacks else position + 2

    def parts_of(self, position: int) -> list[int]:
        """The parts of an attack. A block without surviving points has none."""
        parts = (self.part(self.stage(position), number) for number in range(self.num_blocks))
        return [part for part in parts if part in self.records]

    def points_of(self, number: int) -> tuple[Tensor, Tensor]:
        part = self.slices[number]
        # Converted before it is moved: a GPU divides by 255 in another way, and a stranger's check does it on a CPU.
        # A copy: what the model does to its input must not reach the caller's images.
        return unit_range(self.data.images[part].clone()).to(self.device), self.data.labels[part].to(self.device)

    def size(self, number: int) -> int:
        return self.slices[number].stop - self.slices[number].start

    def standing_in(self, number: int) -> Tensor:
        standing = self.standing[number]
        assert standing is not None, "the clean pass comes first"
        return standing

    def count(self, numbers: Iterable[int]) -> int:
        return sum(int(self.standing_in(number).sum()) for number in numbers)

    def detail(self, number: int, of: int) -> str:
        place = f"block {number + 1} of {self.num_blocks}"
        return place if of == self.num_blocks else f"{place}, {of} in this shard"

    def record(self, stage: str, number: int, seconds: float) -> dict[str, Any]:
        return {
            "stage": stage,
            "block": number,
            "seed": self.evaluation.seed,
            "seconds": seconds,
            "device": device_name(self.device),
            "batch_size": min(self.classifier.largest or self.evaluation.batch_size, self.evaluation.batch_size),
        }

    # --- memory -----------------------------------------------------------------------------------------------------

    def fitting(self, num_images: int, attempt: Callable[[], _T]) -> _T:
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

    def checking(self, num_images: int, attempt: Callable[[], _T]) -> _T:
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
