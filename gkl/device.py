"""Which processor a run uses, and what it is called in a result's manifest."""

from __future__ import annotations

import platform

import torch


def select_device(name: str | None = None) -> torch.device:
    """The named device, or CUDA if there is one, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
