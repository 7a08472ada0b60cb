"""Forward and backward of each loss against plain KL and against the pairwise form, in one run.

    python benchmarks/losses.py

Prints a Markdown table: seconds and peak memory as ratios, which survive a noisy machine better than times do.
"Plain KL" is the faster of `gkl.losses.kl_loss` and `torch.nn.functional.kl_div`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

from gkl.losses import dkl_loss, gkl_loss, ikl_loss, kl_loss

Step = Callable[[], object]

# Tensors of B * C * C floats that the pairwise form and its backward pass hold at once, at least.
_PAIRWISE_TENSORS = 7


def torch_kl(s: Tensor, t: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(s, dim=1), F.softmax(t, dim=1), reduction="batchmean")


def composed_gkl(s: Tensor, t: Tensor, w: Tensor) -> Tensor:
    """The closed form as tensor operations, its gradient left to autograd."""
    difference = t - s
    row_sum = w.sum(dim=1, keepdim=True)
    center = (w * difference).sum(dim=1, keepdim=True) / row_sum
    wmse = 0.5 * (row_sum * w * (difference - center).square()).sum() / row_sum.square().sum()
    ce = -(F.softmax(t.detach(), dim=1) * F.log_softmax(s, dim=1)).sum(dim=1).mean()
    return 20.0 * wmse + 4.0 * ce


def pairwise_gkl(s: Tensor, t: Tensor, w: Tensor) -> Tensor:
    """GKL as printed, with a tensor entry for every pair of classes of every sample."""
    dt = t[:, :, None] - t[:, None, :]
    ds = s[:, :, None] - s[:, None, :]
    ww = w[:, :, None] * w[:, None, :]
    wmse = 0.25 * (ww * (dt - ds) ** 2).sum() / ww.sum()
    ce = -(F.softmax(t.detach(), dim=1) * F.log_softmax(s, dim=1)).sum(dim=1).mean()
    return 20.0 * wmse + 4.0 * ce


def seconds(steps: dict[str, Step], least: float, rounds: int = 20) -> dict[str, float]:
    """The fastest of several rounds, each a median. What else the machine does can only add to it; the steps take
    turns, so that a slow minute meets all of them."""
    timers = {name: Timer("step()", globals={"step": step}) for name, step in steps.items()}
    taken = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, timer in timers.items():
            median = timer.blocked_autorange(min_run_time=least / rounds).median
            taken[name] = min(taken[name], float(median))
    return taken


def peak_bytes(step: Step, device: torch.device) -> int:
    """The most memory that the step holds at one time, beyond what it found."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    assert recorded.profiler is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="least time to measure each entry for")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(f"torch {torch.__version__.split('+')[0]}, {device}, {torch.get_num_threads()} threads, float32\n")
    ratios = "DKL / KL | IKL / KL | GKL / KL | GKL by autograd / KL | pairwise / GKL, time | pairwise / GKL, memory"
    print(f"| B | C | KL | KL, torch's | {ratios} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for batch in (128, 512):
        for classes in (10, 100, 1000):
            print(_row(batch, classes, device, arguments.seconds), flush=True)


def _row(batch: int, classes: int, device: torch.device, least: float) -> str:
    torch.manual_seed(0)
    s, t = (torch.randn(batch, classes, device=device, requires_grad=True) for _ in range(2))
    w = torch.randn(batch, classes, device=device).softmax(dim=1)

    def step_of(loss: Callable[[], Tensor]) -> Step:
        def step() -> None:
            torch.autograd.grad(loss(), (s, t))
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return step

    steps = {
        "kl": step_of(lambda: kl_loss(s, t)),
        "torch": step_of(lambda: torch_kl(s, t)),
        "dkl": step_of(lambda: dkl_loss(s, t)),
        "ikl": step_of(lambda: ikl_loss(s, t, w, wmse_weight=20.0, ce_weight=4.0)),
        "gkl": step_of(lambda: gkl_loss(s, t, w, wmse_weight=20.0, ce_weight=4.0)),
        "composed": step_of(lambda: composed_gkl(s, t, w)),
    }
    time = seconds(steps, least)
    plain = min(time["kl"], time["torch"])
    ratios = " | ".join(f"{time[name] / plain:.2f}" for name in ("dkl", "ikl", "gkl", "composed"))
    needed = _PAIRWISE_TENSORS * batch * classes**2 * 4
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > available:
        slower = larger = f"does not fit ({needed / 2**30:.0f} GiB)"
    else:
        pairwise = step_of(lambda: pairwise_gkl(s, t, w))
        slower = f"{seconds({'pairwise': pairwise}, least, rounds=1)['pairwise'] / time['gkl']:.1f}"
        larger = f"{peak_bytes(pairwise, device) / peak_bytes(steps['gkl'], device):.0f}"
    times = f"{time['kl'] * 1e6:.0f} us | {time['torch'] * 1e6:.0f} us"
    return f"| {batch} | {classes} | {times} | {ratios} | {slower} | {larger} |"


if __name__ == "__main__":
    main()
