"""Draws the order of real and generated training images, and fetches batches to the device ahead of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from gkl.data import Images, ImageSet
from gkl.data.decoding import Decoding, Part, parts
from gkl.data.images import ImageFiles
from gkl.data.photographs import Photograph
from gkl.data.synthetic import SyntheticImages
from gkl.errors import InvalidInput


@dataclass(frozen=True)
class EpochOrder:
    """For each batch of an epoch, the indices of its images, on the CPU."""

    real: list[Tensor]
    generated: list[Tensor] | None
    seeds: list[Tensor] | None = None
    """Seeds of the crops of the real images, where they are cropped at random when they are decoded."""

    def since(self, first: int) -> EpochOrder:
        """The same without the batches before number `first`."""
        generated, seeds = (None if each is None else each[first:] for each in (self.generated, self.seeds))
        return EpochOrder(self.real[first:], generated, seeds)


FetchedBatch: TypeAlias = "tuple[Tensor, Tensor, Tensor | None]"
"""Images (B, C, H, W), uint8, or float32 in [0, 1], and labels (B,), on the device; and which training images they are,
(B,) int64 on the CPU, or None for a batch with generated images."""
_T = TypeVar("_T")


class Batches:
    """Divides the training images, except those held out, into batches, and mixes in generated images."""

    def __init__(
        self,
        data: Images,
        *,
        batch_size: int,
        device: torch.device,
        num_held_out: int = 0,
        synthetic: SyntheticImages | None = None,
        synthetic_fraction: float = 0.0,
        drop_last: bool = False,
        crop: Callable[[Photograph, int], Tensor] | None = None,
        processes: int = 0,
    ) -> None:
        """
        Args:
            data: the training images; the first `num_held_out` are never in a batch.
            batch_size: images of a batch, including generated ones.
            device: the device of the batches.
            num_held_out: how many of the first training images are held out.
            synthetic: generated images, drawn with replacement.
            synthetic_fraction: their share of each batch.
            drop_last: leave out an epoch's last batch if it is smaller; not with generated images.
            crop: for image files, decodes and crops one at random from a seed; by default each image is decoded as the
                data set says.
            processes: how many decode image files; 0 for this one alone. `close` ends them.

        Raises:
            InvalidInput: no image is left to train on.
        """
        if len(data) <= num_held_out:
            raise InvalidInput(
                f"of the {len(data)} training images found, {num_held_out} are held out, which leaves none to train "
                "on; complete the data set, or hold out fewer"
            )
        self.device, self.synthetic = device, synthetic
        self.num_held_out, self.num_images = num_held_out, len(data)
        # Data sets that are kept in memory are small enough for the device, where no batch has to be copied.
        self.data = ImageSet(data.images.to(device), data.labels) if isinstance(data, ImageSet) else data
        self.labels = data.labels.to(device)
        self._crop = crop
        self._running: Generator[FetchedBatch] | None = None
        self._decoding = Decoding(processes if isinstance(data, ImageFiles) else 0, pin_memory=device.type == "cuda")
        generated = round(batch_size * synthetic_fraction) if synthetic is not None else 0
        self.num_real, self.num_generated = batch_size - generated, generated
        # With generated images, an epoch has as many batches as a pass over the whole data set.
        pool = self.num_images if generated else self.num_images - num_held_out
        self.per_epoch = pool // batch_size if drop_last else math.ceil(pool / batch_size)
        if self.per_epoch == 0:
            raise InvalidInput(
                f"the {pool} training images found are less than a batch of {batch_size}, and incomplete batches are "
                "left out, so that none is left to train on; complete the data set, or lower batch_size"
            )

    def order(self, generator: torch.Generator) -> EpochOrder:
        """Draw a random order for an epoch.

        The whole epoch is drawn at once, so that the generator's state does not depend on which batches were already
        fetched.
        """
        pool = self.num_images - self.num_held_out
        wanted = self.per_epoch * self.num_real if self.num_generated else pool
        rounds = [
            torch.randperm(pool, generator=generator, device=generator.device) for _ in range(math.ceil(wanted / pool))
        ]
        real = (torch.cat(rounds)[:wanted] + self.num_held_out).cpu()
        generated = seeds = None
        if self.synthetic is not None:
            shape = (self.per_epoch, self.num_generated)
            drawn = torch.randint(len(self.synthetic), shape, generator=generator, device=generator.device)
            generated = list(drawn.cpu())
        if self._crop is not None:
            drawn = torch.randint(2**62, (wanted,), generator=generator, device=generator.device)
            seeds = list(drawn.cpu().split(self.num_real))[: self.per_epoch]
        return EpochOrder(list(real.split(self.num_real))[: self.per_epoch], generated, seeds)

    def held_out(self) -> Tensor:
        """Return the indices of the held-out images."""
        return torch.arange(self.num_held_out)

    def fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W), uint8, or float32 in [0, 1], and labels (B,) on the device, without random crops."""
        ((images, labels, _),) = self._batches(EpochOrder([index], None))
        return images, labels

    def iterate(self, order: EpochOrder, first: int = 0) -> Generator[FetchedBatch]:
        """The batches from number `first` on, each fetched while the one before is trained on.

        This ends an iteration that was begun before.
        """
        if self._running is not None:
            self._running.close()
        batches = self._batches(order.since(first))
        is_at_hand = isinstance(self.data, ImageSet) and self.synthetic is None
        self._running = batches if is_at_hand else _one_ahead(batches)
        return self._running

    def close(self) -> None:
        """End the processes and threads that read ahead."""
        if self._running is not None:
            self._running.close()
            self._running = None
        self._decoding.close()

    def _batches(self, order: EpochOrder) -> Generator[FetchedBatch]:
        nothing = [None] * len(order.real)
        with closing(self._images(order)) as real:
            for index, images, generated in zip(order.real, real, order.generated or nothing, strict=True):
                labels = self.labels[index.to(self.device)]
                if generated is None or self.synthetic is None:
                    yield images, labels, index
                    continue
                more, more_labels = self.synthetic.take(generated)
                mixed = torch.cat([images, more.to(self.device)]), torch.cat([labels, more_labels.to(self.device)])
                yield *mixed, None

    def _images(self, order: EpochOrder) -> Generator[Tensor]:
        """The real images of each batch, on the device."""
        if not isinstance(self.data, ImageFiles):
            for index in order.real:
                yield self.data.take(index).to(self.device)
            return
        seeds: Sequence[Tensor | None] = order.seeds or [None] * len(order.real)
        wanted = (self._parts(self.data, *each) for each in zip(order.real, seeds, strict=True))
        with closing(self._decoding.iterate(wanted)) as decoded:
            for found in decoded:
                # From page-locked memory the copies do not block.
                images = [part.to(self.device, non_blocking=True) for part in found]
                yield torch.cat(images) if len(images) > 1 else images[0]

    def _parts(self, data: ImageFiles, index: Tensor, seeds: Tensor | None) -> list[Part]:
        photographs = [data.photographs[i] for i in index.tolist()]
        if self._crop is None or seeds is None:
            return parts(data.decode, [(each,) for each in photographs])
        return parts(self._crop, list(zip(photographs, seeds.tolist(), strict=True)))


def _one_ahead(coming: Generator[_T]) -> Generator[_T]:
    """The same, each computed in a thread while the one before is used."""
    with closing(coming), ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        following = pool.submit(next, coming, None)
        while (found := following.result()) is not None:
            following = pool.submit(next, coming, None)
            yield found
