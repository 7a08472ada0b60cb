"""Does GKL teach better than KL? Every loss of distillation with the same search, on Fashion-MNIST.

    python benchmarks/distillation_table.py clean --output runs/distillation_table
    python benchmarks/distillation_table.py long-tail --output runs/distillation_table
    python benchmarks/distillation_table.py robust --output runs/distillation_table

`clean` and `long-tail`: a SmallCNN is trained with cross-entropy, and TinyCNNs learn from it, on the whole training set
or on a long tail of it (factor 100). Every loss gets the same search: six runs with a seed of their own, whose best
accuracy on 5,000 held-out training images chooses learning rate and weights. Then five other seeds with these, measured
once on the 10,000 test images. The table has the mean over seeds, its spread, and the difference from cross-entropy and
from KD, seed by seed, with a 95 % interval of Student's t.

`robust`: a SmallCNN trained with TRADES teaches TinyCNNs under Linf 0.1 with ARD, RSLAD, and RSLAD with GKL. A
TinyCNN is also trained with TRADES itself. The same search of two learning rates and three loss weights for each, by
accuracy under PGD-20 on held-out images, then three seeds and AutoAttack on the first 1,000 test images.

Every finished run is kept in the output directory: the same command goes on where it was stopped. Prints Markdown.
Needs Fashion-MNIST, see `gkl.data.fashion_mnist`. A training of the first takes about half a minute on one CPU core,
and there are 56 of them; the others take longer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student_t

from gkl.errors import NonFiniteLoss
from gkl.evaluation import evaluate
from gkl.files import atomic_path
from gkl.recipes.adversarial import fashion_mnist
from gkl.run_context import RunContext
from gkl.spec import BaseTrainSpec, DistillSpec, EvaluateSpec, Evaluation, Imbalance, Selection, TrainSpec
from gkl.training import train

SEARCH_SEED = 100
SEEDS = (0, 1, 2, 3, 4)
ROBUST_SEEDS = (0, 1, 2)
HELD_OUT = 5_000
FACTOR = 100.0

Objective = dict[str, Any]

# Six runs for each loss: cross-entropy has no weights to try, and so tries more learning rates.
_RATES = (0.03, 0.1, 0.3)
CLEAN_SEARCH: dict[str, list[tuple[float, Objective]]] = {
    "CE": [(rate, {"loss": "ce"}) for rate in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)],
    "KD": [
        (rate, {"loss": "kd", "label_weight": 1 - weight, "kl_weight": weight, "temperature": 4.0})
        for rate, weight in product(_RATES, (0.5, 0.9))
    ],
    "DKD": [
        (rate, {"loss": "dkd", "non_target_weight": beta, "temperature": 4.0, "ramp_epochs": 2})
        for rate, beta in product(_RATES, (1.0, 2.0))
    ],
    "IKL": [
        (rate, {"loss": "ikl", "ce_weight": 1.0, "wmse_weight": wmse, "temperature": 1.0, "ramp_epochs": 2})
        for rate, wmse in product(_RATES, (0.5, 4.0))
    ],
    "GKL": [
        (
            rate,
            {"loss": "gkl", "ce_weight": 1.0, "wmse_weight": wmse, "gamma": 0.6, "temperature": 1.0, "ramp_epochs": 2},
        )
        for rate, wmse in product(_RATES, (0.5, 4.0))
    ],
}
ROBUST_SEARCH: dict[str, list[tuple[float, Objective]]] = {
    "TRADES": [
        (rate, {"loss": "trades", "kl_weight": weight}) for rate, weight in product((0.05, 0.1), (3.0, 6.0, 12.0))
    ],
    "ARD": [
        (rate, {"loss": "ard", "kl_mean": "batch", "temperature": temperature})
        for rate, temperature in product((0.05, 0.1), (1.0, 2.0, 5.0))
    ],
    "RSLAD": [
        (rate, {"loss": "rslad", "kl_mean": "batch", "adversarial_weight": weight, "natural_weight": 1.0})
        for rate, weight in product((0.05, 0.1), (2.0, 5.0, 10.0))
    ],
    "RSLAD with GKL": [
        (
            rate,
            {"loss": "rslad-gkl", "ce_weight": 4.0, "wmse_weight": wmse, "gamma": 1.0, "adversarial_weight": 1.0}
            | {"natural_weight": 0.2},
        )
        for rate, wmse in product((0.05, 0.1), (0.0, 4.0, 20.0))
    ],
}


class Table:
    """Runs of one setting, each kept when it is finished."""

    def __init__(self, setting: str, output: Path, datasets_dir: Path, device: str | None) -> None:
        self.setting, self.output, self.datasets_dir, self.device = setting, output / setting, datasets_dir, device
        self.output.mkdir(parents=True, exist_ok=True)
        self.teacher: Path | None = None

    def run(self, name: str, spec: BaseTrainSpec, evaluation: Evaluation | None) -> dict[str, Any]:
        """Train, and measure if an evaluation is given."""
        kept, directory = self.output / f"{name}.json", self.output / name
        if kept.exists():
            return json.loads(kept.read_text())
        context = RunContext(directory=directory, datasets_dir=self.datasets_dir, device=self.device)
        try:
            outcome = train(spec, context, teacher=self.teacher if isinstance(spec, DistillSpec) else None)
        except NonFiniteLoss as error:
            if evaluation is not None:
                raise
            # In the search, a run that diverges is worth less than any other.
            print(f"{name}: {error}", flush=True)
            return {"held_out_clean": 0.0, "held_out_robust": 0.0}
        found: dict[str, Any] = {
            "learning_rate": spec.optimizer.learning_rate,
            "objective": spec.objective.model_dump(mode="json"),
            "seed": spec.seed,
            "weights": str(directory / outcome.weights),
            "sha256": outcome.manifest.weights_sha256,
            "held_out_clean": outcome.held_out_clean_accuracy,
            "held_out_robust": outcome.held_out_robust_accuracy,
            "seconds": outcome.seconds,
            "shots": None if outcome.test_accuracy is None else outcome.test_accuracy.model_dump(),
            "class_counts": outcome.class_counts,
        }
        if evaluation is not None:
            measured = evaluate(
                EvaluateSpec(
                    name=name,
                    dataset=spec.dataset,
                    architecture=spec.architecture,
                    weights=outcome.manifest.weights_sha256,
                    evaluation=evaluation,
                ),
                directory / outcome.weights,
                RunContext(directory=directory / "evaluation", datasets_dir=self.datasets_dir, device=self.device),
            )
            found |= {
                "points": measured.num_points,
                "clean": measured.clean_correct / measured.num_points,
                "robust": measured.robust_accuracy,
            }
        with atomic_path(kept) as temporary:
            temporary.write_text(json.dumps(found))
        print(json.dumps(found), flush=True)
        return found

    def spec(self, kind: str, architecture: str, rate: float, objective: Objective, seed: int) -> BaseTrainSpec:
        """A run of this setting."""
        is_robust = self.setting == "robust"
        base = fashion_mnist().model_dump(mode="json")
        selection = Selection(num_images=HELD_OUT if not is_robust else 2_000)
        changes: dict[str, Any] = {
            "kind": kind,
            "name": "run",
            "architecture": architecture,
            "objective": objective,
            "optimizer": {"learning_rate": rate},
            "epochs": 6,
            "batch_size": 256,
            "seed": seed,
            "evaluation": None,
            "selection": selection.model_dump(mode="json") | {"every_epochs": 6},
        }
        if is_robust:
            changes["selection"] |= {"num_steps": 20}
        else:
            changes |= {"threat_model": None, "inner_maximization": {}}
        if self.setting == "long-tail":
            changes |= {"imbalance": Imbalance(factor=FACTOR).model_dump(mode="json"), "epochs": 15, "batch_size": 64}
            changes["selection"] |= {"every_epochs": 15}
        if kind == "distill" and objective["loss"] != "ce":
            assert self.teacher is not None
            changes["teacher"] = {"architecture": "small_cnn", "weights": self.teacher_sha256}
        model = DistillSpec if kind == "distill" else TrainSpec
        return model.model_validate(base | changes)

    def train_teacher(self, rate: float, objective: Objective, evaluation: Evaluation) -> dict[str, Any]:
        found = self.run("teacher", self.spec("train", "small_cnn", rate, objective, 0), evaluation)
        self.teacher, self.teacher_sha256 = Path(found["weights"]), found["sha256"]
        return found

    def chosen(self, title: str, tried: list[tuple[float, Objective]], by: str) -> dict[str, Any]:
        """The best of the search on held-out images."""
        found = [
            self.run(f"{_slug(title)}-search-{number}", self._student(rate, objective, SEARCH_SEED), None)
            for number, (rate, objective) in enumerate(tried)
        ]
        return max(found, key=lambda each: each[by])

    def students(self, title: str, best: dict[str, Any], seeds: tuple[int, ...], e: Evaluation) -> list[dict[str, Any]]:
        return [
            self.run(f"{_slug(title)}-{seed}", self._student(best["learning_rate"], best["objective"], seed), e)
            for seed in seeds
        ]

    def _student(self, rate: float, objective: Objective, seed: int) -> BaseTrainSpec:
        kind = "train" if objective["loss"] == "trades" else "distill"
        return self.spec(kind, "tiny_cnn", rate, objective, seed)


def clean_table(table: Table) -> Iterator[str]:
    evaluation = Evaluation(protocol="clean", batch_size=1000)
    teacher = table.train_teacher(0.1, {"loss": "ce"}, evaluation)
    shots = teacher["shots"] is not None
    best = {title: table.chosen(title, tried, "held_out_clean") for title, tried in CLEAN_SEARCH.items()}
    found = {title: table.students(title, best[title], SEEDS, evaluation) for title in CLEAN_SEARCH}
    yield f"Teacher: SmallCNN, {100 * teacher['clean']:.2f} % of 10,000 test images."
    yield ""
    groups = " | many | medium | few" if shots else ""
    yield f"| loss | chosen | clean, five seeds | mean ± spread{groups} | against CE | against KD |"
    yield "|---" * (6 + 3 * shots) + "|"
    for title, runs in found.items():
        accuracies = [run["clean"] for run in runs]
        cells = [title, _settings(best[title]), ", ".join(f"{100 * each:.2f}" for each in accuracies)]
        cells.append(f"{100 * mean(accuracies):.2f} ± {100 * stdev(accuracies):.2f}")
        if shots:
            cells += [_group(runs, name) for name in ("many", "medium", "few")]
        cells += ["" if title == other else _difference(accuracies, found[other], "clean") for other in ("CE", "KD")]
        yield f"| {' | '.join(cells)} |"


def robust_table(table: Table) -> Iterator[str]:
    evaluation = Evaluation.model_validate(fashion_mnist().model_dump()["evaluation"])
    teacher = table.train_teacher(0.1, {"loss": "trades", "kl_weight": 6.0}, evaluation)
    best = {title: table.chosen(title, tried, "held_out_robust") for title, tried in ROBUST_SEARCH.items()}
    found = {title: table.students(title, best[title], ROBUST_SEEDS, evaluation) for title in ROBUST_SEARCH}
    yield "| network | chosen | clean, three seeds | AutoAttack, three seeds | mean ± spread | against TRADES |"
    yield "|---|---|---|---|---|---|"
    yield f"| teacher, SmallCNN | TRADES | {100 * teacher['clean']:.1f} | {100 * teacher['robust']:.1f} | | |"
    for title, runs in found.items():
        robust = [run["robust"] for run in runs]
        cells = [f"{title}, TinyCNN", _settings(best[title])]
        cells += [", ".join(f"{100 * run[name]:.1f}" for run in runs) for name in ("clean", "robust")]
        cells.append(f"{100 * mean(robust):.2f} ± {100 * stdev(robust):.2f}")
        cells.append("" if title == "TRADES" else _difference(robust, found["TRADES"], "robust"))
        yield f"| {' | '.join(cells)} |"


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def _settings(best: dict[str, Any]) -> str:
    names = {"wmse_weight": "wMSE", "kl_weight": "KL", "non_target_weight": "beta", "adversarial_weight": "adversarial"}
    said = [f"rate {best['learning_rate']:g}"]
    said += [f"{title} {best['objective'][name]:g}" for name, title in names.items() if name in best["objective"]]
    if best["objective"]["loss"] == "ard":
        said.append(f"T {best['objective']['temperature']:g}")
    return ", ".join(said)


def _group(runs: list[dict[str, Any]], name: str) -> str:
    values = [run["shots"][name] for run in runs]
    return "-" if None in values else f"{100 * mean(values):.1f}"


def _difference(ours: list[float], others: list[dict[str, Any]], key: str) -> str:
    """Mean of the differences seed by seed, in points of a percent, with the 95 % interval of Student's t."""
    differences = [100 * (a - b[key]) for a, b in zip(ours, others, strict=True)]
    half = student_t.ppf(0.975, len(differences) - 1) * stdev(differences) / len(differences) ** 0.5
    return f"{mean(differences):+.2f} [{mean(differences) - half:+.2f}, {mean(differences) + half:+.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=["clean", "long-tail", "robust"])
    parser.add_argument("--output", type=Path, default=Path("runs/distillation_table"))
    parser.add_argument("--datasets-dir", type=Path, default=Path("gklbench-data/datasets"))
    parser.add_argument("--device", default=None)
    given = parser.parse_args()
    table = Table(given.setting, given.output, given.datasets_dir, given.device)
    print("\n".join((robust_table if given.setting == "robust" else clean_table)(table)))


if __name__ == "__main__":
    main()
