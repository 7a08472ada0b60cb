"""The long tail against its formula."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gkl.data import load_train
from gkl.data.imbalance import class_counts, long_tailed_rows
from gkl.errors import InvalidInput
from gkl.recipes.adversarial import digits_ce
from gkl.run_context import RunContext
from gkl.spec import Imbalance, TrainSpec
from gkl.training import train

LABELS = torch.arange(1000) % 10  # 100 images of each class


@pytest.mark.parametrize("factor", [2.0, 10.0, 100.0])
def test_classes_keep_what_the_formula_says(factor: float) -> None:
    rows = long_tailed_rows(LABELS, Imbalance(factor=factor), num_classes=10)
    expected = [int(100 * (1 / factor) ** (number / 9)) for number in range(10)]
    assert class_counts(LABELS[rows], 10).tolist() == expected
    assert rows.tolist() == sorted(set(rows.tolist()))


def test_the_choice_is_the_seeds() -> None:
    first = long_tailed_rows(LABELS, Imbalance(factor=10.0), num_classes=10)
    assert torch.equal(first, long_tailed_rows(LABELS, Imbalance(factor=10.0), num_classes=10))
    other = long_tailed_rows(LABELS, Imbalance(factor=10.0, seed=1), num_classes=10)
    assert len(other) == len(first)
    assert not torch.equal(first, other)


def test_a_class_without_an_image_is_refused() -> None:
    with pytest.raises(InvalidInput, match="factor 101 leaves class 9 without an image"):
        long_tailed_rows(LABELS, Imbalance(factor=101.0), num_classes=10)
    with pytest.raises(InvalidInput, match="leaves class 9"):
        long_tailed_rows(LABELS[LABELS != 9], Imbalance(factor=2.0), num_classes=10)


def test_the_spec_refuses_what_is_sure_to_leave_a_class_empty() -> None:
    spec = digits_ce().model_dump(mode="json")
    with pytest.raises(ValueError, match="leaves the last class of digits without an image"):
        TrainSpec.model_validate(spec | {"imbalance": {"factor": 1000.0}})
    with pytest.raises(ValueError, match="greater than 1"):
        TrainSpec.model_validate(spec | {"imbalance": {"factor": 1.0}})


def test_a_training_records_the_counts_and_the_accuracy_of_each_group(tmp_path: Path) -> None:
    imbalance = {"factor": 20.0, "seed": 3}
    small = {"architecture": "tiny_cnn", "epochs": 2, "evaluation": None, "selection": {"num_images": 100}}
    spec = TrainSpec.model_validate(digits_ce().model_dump(mode="json") | small | {"imbalance": imbalance})
    outcome = train(spec, RunContext(directory=tmp_path, datasets_dir=tmp_path))
    labels = load_train("digits", tmp_path).labels[100:]
    largest = int(torch.bincount(labels).max())
    available = torch.bincount(labels).tolist()
    wanted = [int(largest * 20 ** (-number / 9)) for number in range(10)]
    assert outcome.class_counts == tuple(min(pair) for pair in zip(wanted, available, strict=True))
    assert outcome.shots is not None
    assert outcome.shots.few is not None
    assert 0 <= outcome.shots.few <= 1
    # Most of the accuracy is that of the classes with most images.
    assert outcome.shots.many is not None
    assert outcome.shots.many > outcome.shots.few
