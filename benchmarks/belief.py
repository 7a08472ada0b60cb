"""What a verdict says of networks that are honest about their robustness, and of networks that lie.

    python benchmarks/belief.py [--points 90] [--only NAME ...]
    python benchmarks/belief.py --cost

Prints a Markdown table: points right when clean, points robust by AutoAttack, points robust after the repair attack,
what is true, the flags, and the repair attack's share of AutoAttack's passes (a backward pass counts as two). With
`--cost` the share of a standard verdict's time that the checks and the repair attack take, on the network of the demo
and on the ResNet-18 that comes with pyautoattack: on the 20 CIFAR-10 images that come with foolbox, each shifted in ten
ways, with a budget that leaves nothing, and on four of them with one that breaks nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.belief_networks import HONEST, LIARS, Case, digits
from gkl import recipes
from gkl.attacks.classifier import Classifier
from gkl.data import ImageSet
from gkl.evaluation import Measurement, measure
from gkl.models import build_model, load_model, load_weights
from gkl.outcome import REPAIR, Event, Progress, broken_beyond_autoattack
from gkl.run_context import RunContext
from gkl.spec import Evaluation, ThreatModel
from gkl.training import train


class Passes:
    """Counts the images that go through a network, and the time, by the stage of the evaluation."""

    def __init__(self) -> None:
        self.of_stage: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.stage, self.since = "clean", time.perf_counter()

    def report(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.end_stage(event.stage)

    def end_stage(self, following: str = "") -> None:
        now = time.perf_counter()
        self.seconds[self.stage] += now - self.since
        self.stage, self.since = following, now

    def count(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        x = given[0]
        self.of_stage[self.stage] += len(x) * (3 if torch.is_grad_enabled() and x.requires_grad else 1)

    def share_of_time(self, stage: str) -> float:
        return self.seconds[stage] / self.seconds.total()

    @property
    def share_of_repair(self) -> float:
        attacks = sum(count for stage, count in self.of_stage.items() if stage not in ("clean", "checks", REPAIR))
        return self.of_stage[REPAIR] / attacks if attacks else 0.0


def verdict(case: Case, model: nn.Module, points: int) -> tuple[Measurement, Passes]:
    evaluation = Evaluation(
        protocol="standard",
        threat_model=ThreatModel(norm=case.norm, epsilon=case.epsilon),
        num_points=points,
        batch_size=points,
    )
    passes = Passes()
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: passes.count(module, given) if isinstance(module, Classifier) else None
    )
    try:
        found = measure(
            model, case.prepare(digits(points)), evaluation, num_classes=case.num_classes, report=passes.report
        )
    finally:
        handle.remove()
    return found, passes


def cost() -> None:
    print("| network | points | robust | seconds | checks | repair |", flush=True)
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        spec = recipes.digits()
        train(spec, RunContext(directory=Path(folder), datasets_dir=Path(folder)))
        demo = load_model(spec.architecture, spec.dataset, Path(folder) / "weights.safetensors", None).eval()
    resnet, images = _resnet_18(), _cifar10_images()
    few = ImageSet(images.images[:4], images.labels[:4])
    for name, model, data, epsilon, size in (
        ("demo's", demo, digits(360), "0.2", 90),
        ("ResNet-18", resnet, _shifted(images), "8/255", 100),
        ("ResNet-18", resnet, few, "0.02/255", 4),
    ):
        evaluation = Evaluation(
            protocol="standard",
            threat_model=ThreatModel(epsilon=epsilon),
            batch_size=size,  # type: ignore[arg-type]
        )
        passes = Passes()
        found = measure(model, data, evaluation, num_classes=10, report=passes.report)
        passes.end_stage()
        print(
            f"| {name}, epsilon {epsilon} | {len(data)} | {found.robust_correct} | {passes.seconds.total():.1f} | "
            f"{passes.share_of_time('checks'):.1%} | {passes.share_of_time(REPAIR):.1%} |",
            flush=True,
        )


def _shifted(data: ImageSet) -> ImageSet:
    """Each image ten times, moved by a few pixels."""
    shifts = [(down, right) for down in (0, 2) for right in range(-2, 3)]
    images = torch.cat([data.images.roll(shift, (2, 3)) for shift in shifts])
    return ImageSet(images, data.labels.repeat(len(shifts)))


def _examples_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _resnet_18() -> nn.Module:
    model = build_model("resnet_18", "cifar10")
    load_weights(model, _examples_of("pyautoattack") / "examples" / "model_test.pt")
    return model.eval()


def _cifar10_images() -> ImageSet:
    paths = sorted((_examples_of("foolbox") / "data").glob("cifar10_*.png"))
    images = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in paths]
    return ImageSet(torch.stack(images), torch.tensor([int(path.stem.split("_")[-1]) for path in paths]))


def robust_by_autoattack(found: Measurement) -> int:
    return found.robust_correct + broken_beyond_autoattack({each.attack: each.broken for each in found.attacks})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=90, help="test images, the first ones")
    parser.add_argument("--only", nargs="*", default=[], help="names of networks; all without")
    parser.add_argument("--cost", action="store_true", help="what the checks and the repair attack cost")
    options = parser.parse_args()
    if options.cost:
        cost()
        return
    truths: dict[int, int] = {}
    print("| network | clean | AutoAttack | after repair | true | flags | repair's passes |", flush=True)
    print("|---|---|---|---|---|---|---|")
    for kind, cases in (("honest", HONEST), ("lies", LIARS)):
        for name, case in cases.items():
            if options.only and name not in options.only:
                continue
            torch.manual_seed(0)
            model = case.make().eval()
            found, passes = verdict(case, model, options.points)
            true: int | None = found.robust_correct
            if kind == "lies":
                true = None
                if case.inside is not None:
                    key = id(case.inside)
                    if key not in truths:
                        honest = Case(case.inside, case.norm, case.epsilon)
                        truths[key] = verdict(honest, case.inside().eval(), options.points)[0].robust_correct
                    true = truths[key]
            flags = ", ".join(flag.name for flag in found.flags) or "-"
            print(
                f"| {name} | {found.clean_correct} | {robust_by_autoattack(found)} | {found.robust_correct} | "
                f"{'?' if true is None else true} | {flags} | {passes.share_of_repair:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
