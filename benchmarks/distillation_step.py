"""What a step of distillation costs with each loss, relative to KD's.

    python benchmarks/distillation_step.py

A ResNet-8x4 learns from a ResNet-32x4 on made images of CIFAR-100's size (or the pair that --student and --teacher
name). In each turn every loss takes one step, in an order that changes from turn to turn. A ratio compares two steps
of one turn; the table has its median over the turns. `teacher kept` is KD with the teacher's logits computed before, as
in a run without augmentation.
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import median

import torch

from gkl.device import select_device
from gkl.models import build_model
from gkl.recipes.distillation import CIFAR100_PAIRS, cifar100
from gkl.spec import DistillSpec
from gkl.training.optimizers import make_optimizer
from gkl.training.tasks import Task, make_task
from gkl.training.teacher import Teacher

OBJECTIVES = {
    "KD": {"loss": "kd"},
    "DKD": {"loss": "dkd"},
    "DKL": {"loss": "dkl"},
    "IKL": {"loss": "ikl"},
    "GKL": {"loss": "gkl"},
    "GKL, not class-wise": {"loss": "gkl", "class_wise": False},
    "teacher kept": {"loss": "kd"},
}


def made_task(spec: DistillSpec, teacher_name: str, device: torch.device) -> Task:
    torch.manual_seed(0)
    student = build_model(spec.architecture, spec.dataset).to(device).to(memory_format=torch.channels_last)
    teacher = Teacher(build_model(teacher_name, spec.dataset), spec.compute, device)
    return make_task(
        spec, student, make_optimizer(student, spec.optimizer), torch.Generator(device).manual_seed(0), teacher
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="resnet_8x4")
    parser.add_argument("--teacher", default="resnet_32x4")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--device", default=None)
    given = parser.parse_args()
    device = select_device(given.device)
    pair = cifar100(CIFAR100_PAIRS["res32x4-res8x4"], "gkl").model_dump(mode="json")
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(given.batch_size, 3, 32, 32, generator=generator).to(device)
    labels = torch.randint(100, (given.batch_size,), generator=generator).to(device)
    rows = torch.arange(given.batch_size)
    tasks: dict[str, Task] = {}
    for title, objective in OBJECTIVES.items():
        spec = DistillSpec.model_validate(pair | {"architecture": given.student, "objective": objective})
        tasks[title] = made_task(spec, given.teacher, device)
        if title == "teacher kept":
            teacher = tasks[title].teacher  # type: ignore[attr-defined]
            teacher._kept = teacher.logits(images)

    def seconds(title: str) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        tasks[title]((images,), labels, epoch=20, rows=rows if title == "teacher kept" else None)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    turns: list[dict[str, float]] = []
    order = list(OBJECTIVES)
    for _ in range(given.turns + 2):
        random.Random(len(turns)).shuffle(order)
        turns.append({title: seconds(title) for title in order})
    # The first steps pay for warm-up.
    turns = turns[2:]
    print(f"{given.student} from {given.teacher}, B = {given.batch_size}, {given.turns} turns, {device}\n")
    print("| loss | median | against KD |\n|---|---|---|")
    for title in OBJECTIVES:
        each = median(turn[title] for turn in turns)
        ratio = median(turn[title] / turn["KD"] for turn in turns)
        print(f"| {title} | {1000 * each:.1f} ms | {ratio:.3f} |")


if __name__ == "__main__":
    main()
