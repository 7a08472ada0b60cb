"""Mean accuracy and mCE against published figures, and against RobustBench's own function."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gkl.catalog import CORRUPTIONS
from gkl.data import SEVERITIES, load_corrupted, unit_range
from gkl.data.imagenet import _robustbench_helper_files, evaluated_image_names
from gkl.models.robustbench import _robustbench
from gkl.outcome import CorruptionOutcome, EvaluationOutcome
from gkl.outcome.corruption_error import _ROBUSTBENCH_ALEXNET, mean_corruption_error, robustbench_mean_corruption_error

PUBLISHED = Path(__file__).parents[4] / "shared" / "robustbench" / "model_info" / "cifar10" / "corruptions"


def outcomes_of(accuracies: dict[tuple[str, int], float]) -> list[CorruptionOutcome]:
    return [
        CorruptionOutcome(
            corruption=name, severity=severity, points=10_000, correct=round(10_000 * value), seconds=0, data_sha256=""
        )
        for (name, severity), value in accuracies.items()
    ]


def test_alexnets_own_errors_give_one() -> None:
    """Published in Table 1 of arXiv 1903.12261: 88.6 for Gaussian noise, 60.7 for JPEG, and so on."""
    errors = dict(
        zip(
            CORRUPTIONS,
            [88.6, 89.4, 92.3, 82.0, 82.6, 78.6, 79.8, 86.7, 82.7, 81.9, 56.5, 85.3, 64.6, 71.8, 60.7],
            strict=True,
        )
    )
    alexnet = outcomes_of({(name, s): 1 - error / 100 for name, error in errors.items() for s in range(1, 6)})
    assert mean_corruption_error("imagenet", alexnet) == pytest.approx(1, abs=1e-3)
    assert mean_corruption_error("cifar10", alexnet) == pytest.approx(sum(errors.values()) / 1500, abs=1e-4)


# Right answers of 25,000 to the 5,000 images in five severities, in the order of `CORRUPTIONS`, and the mCE that
# RobustBench publishes of them.
ROBUSTBENCHS = {
    "AlexNet": (
        [2960, 2792, 2069, 4449, 4230, 5319, 5107, 3300, 4213, 4409, 11038, 3642, 8799, 7036, 9830],
        100.0,
    ),
    "Standard_R50": (
        [7866, 7274, 6497, 9726, 6692, 9533, 9079, 8038, 9329, 11375, 16961, 9776, 11239, 11215, 13461],
        76.38,
    ),
    "Tian2022Deeper_DeiT-B": (
        [18550, 18616, 18374, 14379, 14096, 15024, 13653, 16290, 17538, 17598, 19638, 18144, 16083, 17670, 17676],
        41.7,
    ),
}


@pytest.mark.parametrize("model", ROBUSTBENCHS)
def test_robustbenchs_accuracies_give_its_published_error(model: str) -> None:
    right, published = ROBUSTBENCHS[model]
    outcomes = outcomes_of(
        {(name, s): count / 25_000 for name, count in zip(CORRUPTIONS, right, strict=True) for s in SEVERITIES}
    )
    found = robustbench_mean_corruption_error("imagenet", outcomes)
    assert found is not None
    assert 100 * found == pytest.approx(published, abs=0.005)
    # The two AlexNets differ by little, and they differ.
    assert mean_corruption_error("imagenet", outcomes) == pytest.approx(found, abs=5e-4)
    assert mean_corruption_error("imagenet", outcomes) != pytest.approx(found, abs=1e-6)
    assert robustbench_mean_corruption_error("cifar10", outcomes) is None


@pytest.mark.skipif(not PUBLISHED.exists(), reason="RobustBench's published files are not here")
def test_published_accuracies_give_the_published_mean() -> None:
    (table,) = PUBLISHED.glob("*.csv")
    with table.open() as file:
        corruptions, severities, *rows = csv.reader(file)
    compared = 0
    for name, *values in rows:
        path = PUBLISHED / f"{name}.json"
        if not path.exists() or len(values) < 75:
            continue
        accuracies = {
            (c, int(s)): float(v) for c, s, v in zip(corruptions[1:76], severities[1:76], values[:75], strict=True)
        }
        outcome = EvaluationOutcome.model_construct(corruptions=outcomes_of(accuracies))
        published = float(json.loads(path.read_text())["corruptions_acc"])
        assert outcome.robust_accuracy is not None
        assert 100 * outcome.robust_accuracy == pytest.approx(published, abs=0.02), name
        assert mean_corruption_error("cifar10", outcome.corruptions) == pytest.approx(1 - published / 100, abs=2e-4)
        compared += 1
    assert compared > 5


class Bright(nn.Module):
    """Tells images by their brightness, which is a 20th for each of the first 20."""

    def __init__(self, labels: Tensor) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, x: Tensor) -> Tensor:
        nearest = (20 * x.mean((1, 2, 3))).round().long().clamp(0, 19)
        return nn.functional.one_hot(self.labels[nearest], 1000).float()


@pytest.mark.long
def test_it_is_robustbenchs_own_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On images of ImageNet-C's layout: three folders of images under the names of all corruptions and severities."""
    names, labels = evaluated_image_names()
    count = 20
    model = Bright(labels[:count])
    folders = [tmp_path / f"kept{number}" for number in range(3)]
    for number, folder in enumerate(folders):
        # RobustBench numbers the classes by the folders that are there; three have none of the 5,000 images.
        for name in json.loads((_robustbench_helper_files() / "imagenet_class_to_id_map.json").read_text()):
            (folder / name).mkdir(parents=True)
        for position, name in enumerate(names):
            image = folder / name
            if position >= 10 * count:
                # Never opened, only looked for.
                image.touch()
                continue
            # Every second to fourth image has another one's brightness.
            level = 255 * position // 20 if (position + 1) % (number + 2) else 255 * (position + 1) // 20
            Image.new("RGB", (224, 224), (min(level, 255),) * 3).save(image)
    for position, (corruption, severity) in enumerate((c, s) for c in CORRUPTIONS for s in SEVERITIES):
        link = tmp_path / "imagenet" / "ImageNet-C" / corruption / str(severity)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folders[position * position % 3])

    # Its function divides by the row that it finds here.
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "model_info" / "imagenet" / "corruptions" / "unaggregated_results.csv"
    table.parent.mkdir(parents=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = [(c, s) for c in CORRUPTIONS for s in SEVERITIES]
        writer.writerow(["", *(c for c, _ in columns)])
        writer.writerow(["", *(s for _, s in columns)])
        writer.writerow(["AlexNet", *(1 - _ROBUSTBENCH_ALEXNET[c] for c, _ in columns)])
    evaluation, data, enums = _robustbench("eval"), _robustbench("data"), _robustbench("model_zoo.enums")
    silence = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with warnings.catch_warnings(), silence[0], silence[1]:
        warnings.simplefilter("ignore")
        accuracy, error = evaluation.corruptions_evaluation(
            count,
            os.fspath(tmp_path / "imagenet"),
            enums.BenchmarkDataset.imagenet,
            enums.ThreatModel.corruptions,
            torch.device("cpu"),
            model,
            count,
            False,
            data.PREPROCESSINGS["Res224"],
            "Bright",
        )

    outcomes = []
    for corruption, severity in columns:
        images = load_corrupted("imagenet", tmp_path, corruption, severity)
        found = model(unit_range(images.take(torch.arange(count)))).argmax(1)
        outcomes.append(
            CorruptionOutcome(
                corruption=corruption,
                severity=severity,
                points=count,
                correct=int((found == images.labels[:count]).sum()),
                seconds=0,
                data_sha256="",
            )
        )
    assert len({outcome.correct for outcome in outcomes}) > 1
    assert EvaluationOutcome.model_construct(corruptions=outcomes).robust_accuracy == pytest.approx(accuracy, abs=1e-9)
    assert robustbench_mean_corruption_error("imagenet", outcomes) == pytest.approx(error, abs=1e-6)
