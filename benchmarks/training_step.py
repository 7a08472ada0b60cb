"""A full training step of ours against the same step done as the released scripts do it, in one run.

    python benchmarks/training_step.py --batch-size 32 --compile        # CPU: small_cnn and ResNet-18, minutes
    python benchmarks/training_step.py --device cuda --architecture wrn_28_10_silu --batch-size 512

The step is inner maximization (5 steps), weight perturbation and update with the GKL loss on 100 classes. The other
way computes the natural logits anew, with their graph, at every inner step, keeps a copy of the network and an
optimizer for the weight perturbation, and holds B * C * C tensors for the loss. Same model, data and precision; the
order is A B A B, and medians are compared. On CUDA the step in bfloat16, channels last and compiled is measured too;
with --peak-tflops the share of that peak is noted.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import OrderedDict
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gkl.catalog import DATASETS
from gkl.models import build_model
from gkl.recipes.adversarial import cifar
from gkl.spec import TrainSpec
from gkl.training.optimizers import make_optimizer
from gkl.training.tasks import AdversarialTask

EPSILON = 8 / 255
STEPS = 5
GAMMA = 0.005


def pairwise_gkl(s: Tensor, t: Tensor, w: Tensor, wmse_weight: float, ce_weight: float) -> Tensor:
    """The loss with its B * C * C tensors."""
    classes = t.shape[1]
    delta_t = t.view(-1, classes, 1) - t.view(-1, 1, classes)
    delta_s = s.view(-1, classes, 1) - s.view(-1, 1, classes)
    with torch.no_grad():
        pairs = w.view(-1, classes, 1) @ w.view(-1, 1, classes)
    wmse = 0.25 * (pairs * (delta_t - delta_s) ** 2).sum() / pairs.sum()
    ce = -(F.softmax(t, dim=1).detach() * F.log_softmax(s, dim=1)).sum(dim=1).mean()
    return wmse_weight * wmse + ce_weight * ce


class ReleasedStep:
    """What the released scripts do in a step, in our words."""

    def __init__(self, model: nn.Module, prior: Tensor) -> None:
        self.model, self.prior = model, prior
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4)
        self.proxy = copy.deepcopy(model)
        self.proxy_optimizer = torch.optim.SGD(self.proxy.parameters(), lr=0.01)

    def objective(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        adversarial, natural = model(x_adv), model(x)
        return F.cross_entropy(natural, y) + pairwise_gkl(adversarial, natural, self.prior[y], 20.0, 4.0)

    def __call__(self, x: Tensor, y: Tensor) -> None:
        self.model.eval()
        x_adv = x + 0.001 * torch.randn_like(x)
        for _ in range(STEPS):
            x_adv.requires_grad_()
            loss = pairwise_gkl(self.model(x_adv), self.model(x), self.prior[y], 1.0, 1.0)
            (gradient,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + EPSILON / 2 * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - EPSILON), x + EPSILON).clamp(0, 1)
        self.model.train()
        moves = self._perturbation(x, x_adv, y)
        self._add(moves, 1.0)
        loss = self.objective(self.model, x, x_adv, y)
        self.optimizer.zero_grad()
        loss.backward()
        loss.item()
        self.optimizer.step()
        self._add(moves, -1.0)

    def _perturbation(self, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        self.proxy.load_state_dict(self.model.state_dict())
        self.proxy.train()
        self.proxy_optimizer.zero_grad()
        (-self.objective(self.proxy, x, x_adv, y)).backward()
        self.proxy_optimizer.step()
        moves: dict[str, Tensor] = OrderedDict()
        for (name, old), new in zip(self.model.state_dict().items(), self.proxy.state_dict().values(), strict=True):
            if old.dim() > 1 and "weight" in name:
                difference = new - old
                moves[name] = GAMMA * old.norm() / (difference.norm() + 1e-20) * difference
        return moves

    @torch.no_grad()
    def _add(self, moves: dict[str, Tensor], sign: float) -> None:
        for name, parameter in self.model.named_parameters():
            if name in moves:
                parameter.add_(sign * moves[name])


def our_step(model: nn.Module, prior: Tensor, batch_size: int, **compute: object) -> Callable[[Tensor, Tensor], object]:
    base = cifar("cifar100").model_dump(mode="json")
    spec = TrainSpec.model_validate(
        base | {"architecture": "resnet_18", "batch_size": batch_size, "augmentation": None, "compute": compute}
    )
    device = prior.device
    if spec.compute.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, spec.optimizer)
    task = AdversarialTask(spec, model, optimizer, torch.Generator(device).manual_seed(0))
    task.objective.prior.rows.copy_(prior)
    return lambda x, y: task.step((x,), y, epsilon=EPSILON, perturb_weights=True)


def timed(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(
    architecture: str,
    batch_size: int,
    device: torch.device,
    *,
    repeats: int,
    compiled: bool,
    peak_tflops: float | None,
) -> None:
    torch.manual_seed(0)
    described = DATASETS["cifar100"]
    x = torch.rand(batch_size, *described.image_shape, device=device)
    y = torch.randint(0, described.num_classes, (batch_size,), device=device)
    prior = torch.randn(100, 100, device=device).softmax(dim=1)
    model = build_model(architecture, "cifar100").to(device)
    steps = {
        "released": ReleasedStep(copy.deepcopy(model), prior),
        "ours, channels first": our_step(copy.deepcopy(model), prior, batch_size, channels_last=False),
        "ours": our_step(copy.deepcopy(model), prior, batch_size),
    }
    if compiled:
        steps["ours, compiled"] = our_step(copy.deepcopy(model), prior, batch_size, compile=True)
    if device.type == "cuda":
        fast = {"precision": "bfloat16", "compile": True}
        steps["ours, bfloat16 + compiled"] = our_step(copy.deepcopy(model), prior, batch_size, **fast)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            seconds = timed(lambda step=step: step(x, y), device)  # type: ignore[misc]
            # The first turn warms up.
            if turn:
                taken[name].append(seconds)
    released, eager = (median(taken[name]) for name in ("released", "ours, channels first"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    # In forward passes: the natural logits, per inner step one forward and a backward to the image, and twice
    # (perturbation, update) two forwards and a backward to images and weights each.
    operations = counter.get_total_flops() * (1 + 2 * STEPS + 2 * 6)
    for name, seconds in taken.items():
        middle = median(seconds)
        share = f" | {operations / middle / 1e12 / peak_tflops:.0%}" if peak_tflops else ""
        ratios = f"{released / middle:.2f} | {eager / middle:.2f}{share}"
        print(f"| {architecture} | {batch_size} | {name} | {middle:.3f} s | {ratios} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--architecture", action="append", help="default: small_cnn and resnet_18")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="measure our step through torch.compile too")
    parser.add_argument("--peak-tflops", type=float, help="the device's bfloat16 peak, to note the achieved share")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__.split('+')[0]}, {name}\n")
    print("| network | B | step | median | faster than released | faster than ours, channels first |")
    print("|---|---|---|---|---|---|")
    for architecture in arguments.architecture or ["small_cnn", "resnet_18"]:
        measure(
            architecture,
            arguments.batch_size,
            device,
            repeats=arguments.repeats,
            compiled=arguments.compile,
            peak_tflops=arguments.peak_tflops,
        )


if __name__ == "__main__":
    main()
