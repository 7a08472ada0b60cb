"""The state of one process's work on an evaluation: its model, its blocks, and which parts are finished.

The points are divided into fixed blocks of `batch_size` consecutive points; a part is one stage on one block.
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
    """A placeholder for attacks that need more than images and labels (`gkl.evaluation.beyond_autoattack`)."""
    return x


class Run:
    """One process's work on an evaluation.

    A part's number is its stage times the number of blocks, plus its block. Stage 0 is the clean pass. The protocol's
    attacks follow, then the checks, which have a single part, then the attacks after the protocol's own.
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
        # The records of finished parts, kept here because reading their files again would also read the images.
        self.records: dict[int, Mapping[str, Any]] = {}
        # For each block of n points (n,) bool: those that nothing has broken so far. None until its clean pass is done.
        self.standing: list[Tensor | None] = [None] * self.num_blocks

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Put the model into the state in which it is evaluated, and restore its own state afterwards."""
        self.came_in_training_mode = checks.training_mode(self.model)
        modes = [(module, module.training) for module in self.model.modules()]
        gradients = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        # Batch statistics must not change during attacks, and attacks need the gradients of images only.
        self.model.eval().requires_grad_(False)
        # The attacks seed torch's global generators. Restore those of the caller, on the one device that is used.
        is_cuda = self.device.type == "cuda"
        current = torch.cuda.device(self.device) if is_cuda else nullcontext()
        with current, torch.random.fork_rng(devices=[self.device] if is_cuda else []):
            try:
                if self.attacks:
                    # Copy the network before its first call, since it may change its state when it is called.
                    self.copies = belief.copies_of(self.model, self.classifier.num_classes, self.progress.on_call)
                yield
            finally:
                for module, mode in modes:
                    module.training = mode
                for parameter, flag in gradients:
                    parameter.requires_grad_(flag)

    # --- parts and points -------------------------------------------------------------------------------------------

    def known(self, part: int) -> Block | None:
        """The part of this number if an earlier run has finished it."""
        block = self.blocks.get(part)
        if block is not None:
            self.records[part] = block.record
            if block.record["batch_size"] < self.evaluation.batch_size:
                # A batch that did not fit into memory before the interruption would not fit now.
                self.classifier.largest = min(self.classifier.largest or len(self.data), block.record["batch_size"])
        return block

    def keep(self, part: int, block: Block) -> None:
        self.blocks.put(part, block)
        self.records[part] = block.record

    def finished(self, part: int) -> Block:
        """The part of this number, which was kept before.

        Raises:
            InvalidInput: its file is missing or damaged.
        """
        block = self.blocks.get(part)
        if block is None:
            raise InvalidInput("a part of this evaluation was removed or damaged while it ran; start it again")
        return block

    def part(self, stage: int, number: int) -> int:
        """The number of the part of this stage on this block."""
        return stage * self.num_blocks + number

    def stage(self, position: int) -> int:
        """The stage of an attack. Those after the protocol's own follow the checks: older parts keep their numbers."""
        return position + 1 if position < self.num_own_attacks else position + 2

    def parts_of(self, position: int) -> list[int]:
        """The parts of an attack. A block without unbroken points has none."""
        parts = (self.part(self.stage(position), number) for number in range(self.num_blocks))
        return [part for part in parts if part in self.records]

    def points_of(self, number: int) -> tuple[Tensor, Tensor]:
        """Images (n, channels, height, width) in [0, 1] and labels (n,) of a block, on the device."""
        part = self.slices[number]
        # Convert on the CPU, as a check of the certificate does: a GPU rounds the division by 255 differently.
        # Clone the images, so that a model that writes into its input does not change the caller's.
        return unit_range(self.data.images[part].clone()).to(self.device), self.data.labels[part].to(self.device)

    def size(self, number: int) -> int:
        """The number of points in a block."""
        return self.slices[number].stop - self.slices[number].start

    def standing_in(self, number: int) -> Tensor:
        """(n,) bool: the points of a block that are classified correctly and not broken so far."""
        standing = self.standing[number]
        assert standing is not None, "the clean pass comes first"
        return standing

    def count(self, numbers: Iterable[int]) -> int:
        """How many points of these blocks are not broken so far."""
        return sum(int(self.standing_in(number).sum()) for number in numbers)

    def detail(self, number: int, of: int) -> str:
        """The block's position for progress reports, in a run of `of` blocks."""
        place = f"block {number + 1} of {self.num_blocks}"
        return place if of == self.num_blocks else f"{place}, {of} in this shard"

    def record(self, stage: str, number: int, seconds: float) -> dict[str, Any]:
        """The fields that the records of all parts have."""
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
        """Call `attempt` again after each out-of-memory error, with half as many images given to the model at once."""
        while True:
            try:
                return attempt()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                smaller = self.classifier.halve(num_images)
                if smaller is None:
                    raise
            # Outside the handler, because the error's traceback keeps tensors in memory.
            _log.warning("the device is out of memory; the model is now given %d images at once", smaller)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.progress.restart_part()

    def checking(self, num_images: int, attempt: Callable[[], _T]) -> _T:
        """Like `fitting`, for a check that also calls the network's copies. Afterwards all batch sizes are restored.

        Raises:
            InvalidInput: the device has too little memory for the check, even with one image at once.
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
