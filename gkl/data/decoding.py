"""Decodes photographs in several processes, ahead of their use."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.context import BaseContext
from typing import Any

import torch
from joblib import cpu_count
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from gkl.errors import DecodingEnded, InvalidInput

_MOST_PROCESSES = 16
_IMAGES_AT_ONCE = 32
"""Images that a process decodes before it hands them over: few enough that its memory and /dev/shm stay small."""
_AHEAD = 2
"""How many such parts each process works ahead."""


@dataclass(frozen=True)
class Part:
    """Images of one batch that are decoded together."""

    decode: Callable[..., Tensor]
    """Returns an image (channels, height, width), with the same shape for all images."""
    arguments: list[tuple[Any, ...]]
    """What it is called with for each image."""
    is_last: bool
    """Whether it is the batch's last part."""

    def __call__(self) -> Tensor:
        # torch.stack; in a process of DataLoader it writes into shared memory at once.
        stacked: Tensor = default_collate([self.decode(*each) for each in self.arguments])
        return stacked


def parts(decode: Callable[..., Tensor], arguments: list[tuple[Any, ...]]) -> list[Part]:
    """Cut the images of a batch into parts."""
    return [
        Part(decode, arguments[start : (end := start + _IMAGES_AT_ONCE)], is_last=end >= len(arguments))
        for start in range(0, len(arguments), _IMAGES_AT_ONCE)
    ]


def usable_processes() -> int:
    """How many processes this one may occupy: its cores, or OMP_NUM_THREADS if that is less, but at most 16.

    A worker of the service sets OMP_NUM_THREADS to a run's share of the host.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    cores: int = cpu_count()
    share = int(threads) if threads.isdecimal() and int(threads) else cores
    return max(1, min(cores, share, _MOST_PROCESSES))


class Decoding:
    """Decodes batches in order, ahead of their use. `close` ends its processes; they also end when this one dies."""

    def __init__(self, processes: int, *, pin_memory: bool = False) -> None:
        """
        Args:
            processes: started at the first batch; with 0, threads of this process decode, and not ahead.
            pin_memory: put the images into page-locked memory, from which CUDA copies without blocking.
        """
        self._requests = _Requests()
        self._loader: DataLoader[Any] | None = None
        self._threads = ThreadPoolExecutor(thread_name_prefix="decode")
        if processes:
            self._loader = DataLoader(
                _Decoder(),
                sampler=self._requests,
                batch_size=None,
                num_workers=processes,
                collate_fn=_unchanged,
                pin_memory=pin_memory,
                worker_init_fn=_begin,
                multiprocessing_context=_context(),
                # Else it would draw from torch's global stream.
                generator=torch.Generator(),
                prefetch_factor=_AHEAD,
                persistent_workers=True,
            )

    def iterate(self, batches: Iterable[list[Part]]) -> Generator[list[Tensor]]:
        """Yield the images of each batch, in parts (b, channels, height, width) uint8.

        Close it before the next one is begun.

        Raises:
            InvalidInput: an image is missing or damaged.
            DecodingEnded: a process was ended from outside.
        """
        if self._loader is None:
            for batch in batches:
                yield list(self._threads.map(Part.__call__, batch))
            return
        self._requests.coming = (part for batch in batches for part in batch)
        decoded: list[Tensor] = []
        try:
            for images, is_last in self._loader:
                if isinstance(images, str):
                    raise InvalidInput(images)
                decoded.append(images)
                if is_last:
                    yield decoded
                    decoded = []
        except RuntimeError as error:
            # DataLoader has no class of its own for this.
            if "DataLoader worker" not in str(error):
                raise
            raise DecodingEnded(
                f"a process that decodes images was ended from outside ({' '.join(str(error).split())}); look at the "
                "host's memory and at the size of /dev/shm, then start the run again to go on from its last checkpoint"
            ) from error

    def close(self) -> None:
        # Without references left, DataLoader stops its processes and waits for them.
        self._loader = None
        self._threads.shutdown()


class _Requests(Sampler[Part]):
    """The parts that the processes are asked for, in order."""

    def __init__(self) -> None:
        self.coming: Iterator[Part] = iter(())

    def __iter__(self) -> Iterator[Part]:
        return self.coming


class _Decoder(Dataset[Any]):
    """Decodes in a process of `Decoding`: a part's images, or what is wrong with one, and whether it is the last."""

    def __getitem__(self, part: Part) -> tuple[Tensor | str, bool]:
        try:
            return part(), part.is_last
        except InvalidInput as error:
            # DataLoader would raise it again with a traceback as its message.
            return str(error), part.is_last


def _context() -> BaseContext:
    """Processes are copies of one that has imported this module and nothing else.

    A copy of this process ('fork') would have the locks of its threads and its CUDA context.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _unchanged(found: Any) -> Any:
    return found


def _begin(_: int) -> None:
    # Ctrl-C reaches every process of a terminal. The run stops at its next step and ends this process then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End if the run is killed. DataLoader's own check looks at the process that this one is a copy of."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
