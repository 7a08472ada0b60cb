from __future__ import annotations

import pytest
import torch

from gkl.catalog import DATASETS
from gkl.data import load_test, load_train


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_data_set_is_what_the_catalog_says(name: str) -> None:
    described = DATASETS[name]
    train, test = load_train(name), load_test(name)
    assert (len(train), len(test)) == (described.num_train, described.num_test)
    for part in (train, test):
        assert part.images.shape[1:] == described.image_shape
        assert part.images.dtype == torch.float32
        assert (part.images.min(), part.images.max()) == (0, 1)
        assert set(part.labels.tolist()) == set(range(described.num_classes))


def test_digits_are_split_without_overlap() -> None:
    train, test = load_train("digits"), load_test("digits")
    seen = {image.numpy().tobytes() for image in train.images}
    assert not [image for image in test.images if image.numpy().tobytes() in seen]


def test_the_hash_tells_data_apart() -> None:
    test = load_test("digits")
    assert test.sha256() == load_test("digits").sha256()
    assert test.first(10).sha256() != test.first(11).sha256()
    changed = test.first(10)
    changed.labels[0] += 1
    assert changed.sha256() != load_test("digits").first(10).sha256()
