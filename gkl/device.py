"""Which processor a run uses, and what it is called in a result's manifest."""

from __future__ import annotations

import platform

import torch

from gkl.errors import InvalidInput


def select_device(name: str | None = None) -> torch.device:
    """The named device, or CUDA if there is one, else the CPU.

    Raises:
        InvalidInput: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"the device {name!r} cannot be used here; leave it out, or take 'cpu'") from error
    return device


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
