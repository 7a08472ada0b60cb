"""What a verdict costs beyond the attacks themselves: our whole evaluation against pyautoattack alone.

    .venv/bin/python benchmarks/autoattack.py

Both attack the same points of the same network in the same blocks, in turns, in one process. Ours includes everything
that stands between a spec and a result: hashes, checks of the network, the repair attack, a file for every part, the
certificate, and its re-check by a network loaded anew. Reports for each attack the wall time and how often the network
was run forwards and backwards.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from gkl.catalog import DATASETS, preprocessing_for
from gkl.data import load_test, unit_range
from gkl.evaluation import evaluate
from gkl.files import sha256_of
from gkl.models import build_model, load_model
from gkl.outcome import REPAIR, EvaluationOutcome, Event, Progress
from gkl.recipes.adversarial import digits
from gkl.run_context import RunContext
from gkl.spec import EvaluateSpec, Evaluation, ThreatModel
from gkl.training import train

NAMES = {"apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T", "square": "Square"}
OURS = [*NAMES.values(), REPAIR]


class Counted:
    """Counts a network's passes, under the name of what is running; in runs of their own, which are not timed."""

    def __init__(self, kind: type[nn.Module]) -> None:
        self.kind, self.stage = kind, "other"
        self.forwards: Counter[str] = Counter()
        self.backwards: Counter[str] = Counter()

    def __enter__(self) -> Counted:
        self.hook = register_module_forward_hook(self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if type(module) is self.kind:
            self.forwards[self.stage] += 1
            if output.requires_grad:
                output.register_hook(self._backward)

    def _backward(self, gradient: torch.Tensor) -> None:
        self.backwards[self.stage] += 1


def ours(spec: EvaluateSpec, weights: Path, counted: Counted | None = None) -> tuple[float, EvaluationOutcome]:
    def report(event: Event) -> None:
        if counted is not None and isinstance(event, Progress):
            counted.stage = event.stage if event.stage in OURS else "other"

    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        outcome = evaluate(
            spec,
            weights,
            RunContext(directory=Path(directory), datasets_dir=datasets_dir(), report=report, device="cpu"),
        )
        return time.perf_counter() - started, outcome


def staged(counted: Counted | None, name: str, perturb: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        if counted is None:
            return perturb(*arguments)
        counted.stage = name
        try:
            return perturb(*arguments)
        finally:
            counted.stage = "other"

    return run


def theirs(spec: EvaluateSpec, weights: Path, counted: Counted | None = None) -> tuple[float, dict[str, float], int]:
    """Its standard evaluation on each block, as its users call it."""
    evaluation = spec.evaluation
    assert evaluation.threat_model is not None
    started = time.perf_counter()
    model = load_model(spec.architecture, spec.dataset, weights, None).eval()
    preprocessing = preprocessing_for(spec.dataset, spec.architecture)
    data = load_test(spec.dataset, datasets_dir(), evaluation.num_points, preprocessing)
    reference = AutoAttack(
        model, norm=evaluation.threat_model.norm, eps=evaluation.threat_model.epsilon, seed=evaluation.seed
    )
    reference.logger.setLevel(logging.CRITICAL)
    seconds: dict[str, float] = dict.fromkeys(NAMES.values(), 0.0)
    for attack, name in (
        (reference.apgd, "APGD-CE"),
        (reference.apgd_targeted, "APGD-T"),
        (reference.fab, "FAB-T"),
        (reference.square, "Square"),
    ):
        attack.perturb = _timed(staged(counted, name, attack.perturb), seconds, name)
    robust = 0
    size = evaluation.batch_size
    for x, y in zip(data.images.split(size), data.labels.split(size), strict=True):
        _, y_adv = reference.run_standard_evaluation(unit_range(x), y, batch_size=size)
        robust += int((y_adv == y).sum())
    return time.perf_counter() - started, seconds, robust


def _timed(run: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return run(*arguments)
        finally:
            seconds[name] += time.perf_counter() - started

    return timed


def datasets_dir() -> Path:
    return Path(os.environ.get("GKLBENCH_DATASETS_DIR", "gklbench-data/datasets")).resolve()


def compare(title: str, weights: Path, options: argparse.Namespace) -> None:
    norm_epsilon = DATASETS["digits"].epsilon[options.norm]
    spec = EvaluateSpec(
        name=title,
        dataset="digits",
        architecture=options.architecture,
        weights=sha256_of(weights),
        evaluation=Evaluation(
            threat_model=ThreatModel(norm=options.norm, epsilon=norm_epsilon),
            num_points=options.points,
            batch_size=options.batch_size,
        ),
    )
    kind = type(build_model(spec.architecture, spec.dataset))
    with Counted(kind) as our_counts:
        ours(spec, weights, our_counts)
    with Counted(kind) as their_counts:
        theirs(spec, weights, their_counts)
    # A row for each turn: what each attack took, and the whole.
    our_seconds: list[dict[str, float]] = []
    their_seconds: list[dict[str, float]] = []
    for turn in range(options.turns):
        for who in ("ours", "theirs") if turn % 2 == 0 else ("theirs", "ours"):
            if who == "ours":
                total, outcome = ours(spec, weights)
                our_seconds.append({attack.attack: attack.seconds for attack in outcome.attacks} | {"whole": total})
            else:
                total, seconds, robust = theirs(spec, weights)
                their_seconds.append(seconds | {"whole": total})
    assert outcome.autoattack_correct == robust, "the verdicts differ"
    print(
        f"\n{title}: {options.norm} {norm_epsilon:g}, {options.points} points in blocks of {options.batch_size}; ",
        end="",
    )
    print(f"clean {outcome.clean_correct}, robust {robust} by both; medians of {options.turns} turns\n")
    print("| attack | broken | ours | pyautoattack | ratio | forwards, ours / theirs | backwards, ours / theirs |")
    print("|---|---|---|---|---|---|---|")
    for name in [*OURS, "the rest", "whole"]:
        for row in (*our_seconds, *their_seconds):
            row.setdefault(REPAIR, 0.0)
            row["the rest"] = row["whole"] - sum(row[attack] for attack in OURS)
        a, b = (median(row[name] for row in rows) for rows in (our_seconds, their_seconds))
        ratio = median(x[name] / max(y[name], 1e-9) for x, y in zip(our_seconds, their_seconds, strict=True))
        broken = next((str(attack.broken) for attack in outcome.attacks if attack.attack == name), "")
        stage = "other" if name == "the rest" else name
        passes = [
            f"{mine.total() if name == 'whole' else mine[stage]} / {other.total() if name == 'whole' else other[stage]}"
            for mine, other in (
                (our_counts.forwards, their_counts.forwards),
                (our_counts.backwards, their_counts.backwards),
            )
        ]
        shown = f"{ratio:.3f}" if b > 0.1 else ""
        print(f"| {name} | {broken} | {a:.2f} s | {b:.2f} s | {shown} | {' | '.join(passes)} |")
    whole = sorted(x["whole"] / y["whole"] for x, y in zip(our_seconds, their_seconds, strict=True))
    print(f"\nThe whole's ratio in each turn: {', '.join(f'{ratio:.3f}' for ratio in whole)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="small_cnn", help="of the two networks, trained on digits first")
    parser.add_argument("--norm", default="Linf", choices=["Linf", "L2"])
    parser.add_argument("--points", type=int, default=180)
    parser.add_argument("--batch-size", type=int, default=90)
    parser.add_argument("--turns", type=int, default=5, help="runs of each, in alternating order")
    options = parser.parse_args()
    base = digits().model_copy(update={"architecture": options.architecture})
    kinds = {
        "Robust network": {},
        "Network without robustness": {
            "threat_model": base.threat_model.model_copy(update={"epsilon": 0.001}),
            "epochs": 5,
        },
    }
    for title, changes in kinds.items():
        with tempfile.TemporaryDirectory() as directory:
            spec = base.model_copy(update=changes)
            train(spec, RunContext(directory=Path(directory), datasets_dir=datasets_dir(), device="cpu"))
            compare(title, Path(directory) / "weights.safetensors", options)


if __name__ == "__main__":
    main()
