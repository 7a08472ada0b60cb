"""Selects a run's device and sets its float32 precision and random streams; recognizes out-of-memory errors."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gkl.errors import InvalidInput, OutOfMemory


def select_device(name: str | None = None) -> torch.device:
    """Return the named device; without a name CUDA if it is available, else the CPU.

    A CUDA device also becomes the current device of the process, because the code of some networks uses that.

    Raises:
        InvalidInput: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type not in ("cpu", "cuda"):
            raise InvalidInput(f"the device {name!r} is not supported; use 'cpu' or 'cuda'")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"the device {name!r} cannot be used here; leave it out, or use 'cpu'") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def set_tensor_float_32(allowed: bool) -> None:
    """Allow or forbid TF32, in which CUDA rounds the factors of float32 convolutions and matrix products to 10 bits of
    mantissa."""
    torch.backends.cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turn torch's various out-of-memory errors within the block into `OutOfMemory`.

    Raises:
        OutOfMemory: the block ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            "the device has too little memory for this run; lower batch_size and start it again"
        ) from error


def is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    # torch raises a class of its own for CUDA, and a plain RuntimeError for the CPU.
    texts = ("can't allocate memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in texts)


@contextmanager
def own_random_stream(generator: torch.Generator) -> Iterator[None]:
    """Within the block, torch's global random streams are seeded from `generator`; afterwards they are restored.

    This draws one number from `generator`.
    """
    device = generator.device
    seed = int(torch.randint(0, 2**62, (), generator=generator, device=device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
