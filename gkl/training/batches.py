"""Draws the order of real and generated training images, and fetches batches to the device ahead of time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from gkl.data import Images, ImageSet
from gkl.data.synthetic import SyntheticImages
from gkl.errors import InvalidInput


@dataclass(frozen=True)
class EpochOrder:
    """For each batch of an epoch, the indices of its images, on the CPU."""

    real: list[Tensor]
    generated: list[Tensor] | None
    """None if no image is generated."""


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
        if self.synthetic is None:
            return EpochOrder(list(real.split(self.num_real))[: self.per_epoch], None)
        shape = (self.per_epoch, self.num_generated)
        generated = torch.randint(len(self.synthetic), shape, generator=generator, device=generator.device)
        return EpochOrder(list(real.split(self.num_real)), list(generated.cpu()))

    def held_out(self) -> Tensor:
        """Return the indices of the held-out images."""
        return torch.arange(self.num_held_out)

    def fetch(self, index: Tensor, generated: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W), uint8, or float32 in [0, 1], and labels (B,), on the device.

        Args:
            index: indices of real images, on the CPU.
            generated: indices of generated images, which follow the real ones in the batch.
        """
        images, labels = self.data.take(index).to(self.device), self.labels[index.to(self.device)]
        if generated is None or self.synthetic is None:
            return images, labels
        more, more_labels = self.synthetic.take(generated)
        return torch.cat([images, more.to(self.device)]), torch.cat([labels, more_labels.to(self.device)])

    def iterate(self, order: EpochOrder, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's batches from number `first` on, and fetch the next batch while the current one is in use."""
        generated: Sequence[Tensor | None] = order.generated or [None] * len(order.real)
        wanted = list(zip(order.real, generated, strict=True))[first:]
        if isinstance(self.data, ImageSet) and self.synthetic is None:
            for index, _ in wanted:
                yield self.fetch(index)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            coming = [pool.submit(self.fetch, *batch) for batch in wanted[:1]]
            for following in [*wanted[1:], None][: len(wanted)]:
                batch = coming.pop().result()
                if following is not None:
                    coming.append(pool.submit(self.fetch, *following))
                yield batch
