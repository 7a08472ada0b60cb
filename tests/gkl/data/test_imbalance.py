from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gkl.data import ImageSet, load_train
from gkl.data.images import ImageFiles
from gkl.data.imbalance import class_counts, imbalanced
from gkl.data.photographs import Photograph
from gkl.errors import InvalidInput
from gkl.spec import Imbalance
from tests.specs import NO_FILES


def numbered(labels: list[int]) -> ImageSet:
    """Images that are their own number."""
    numbers = torch.arange(len(labels))
    return ImageSet(numbers.to(torch.uint8)[:, None, None, None], torch.tensor(labels))


def numbers(data: ImageSet) -> list[int]:
    return data.images.flatten().tolist()


def test_class_sizes_are_those_of_the_formula() -> None:
    # CIFAR-100-LT with factor 100, as Cao et al. (arXiv 1906.07413) make it: 10,847 images.
    sizes = Imbalance(factor=100).class_sizes(500, 100)
    assert sizes == [int(500 * 0.01 ** (label / 99)) for label in range(100)]
    assert (sizes[0], sizes[-1], sum(sizes)) == (500, 5, 10_847)


def test_each_class_keeps_the_first_of_its_images_in_a_seeded_order() -> None:
    data = numbered([label for label in range(4) for _ in range(40)])

    def kept(factor: float, seed: int) -> set[int]:
        return set(numbers(imbalanced(data, Imbalance(factor=factor, seed=seed), num_classes=4)))

    chosen = imbalanced(data, Imbalance(factor=8, seed=3), num_classes=4)
    assert class_counts(chosen.labels, 4) == (40, 20, 10, 5)
    assert numbers(chosen) == sorted(numbers(chosen))
    assert [number // 40 for number in numbers(chosen)] == chosen.labels.tolist()
    assert kept(8, 3) == set(numbers(chosen)) != kept(8, 4)
    # Of one order: a larger factor leaves out more of the same.
    assert kept(20, 3) < kept(8, 3)


def test_held_out_images_stay_first_and_do_not_count() -> None:
    labels = [0] * 30 + [label for label in range(3) for _ in range(20)]
    chosen = imbalanced(numbered(labels), Imbalance(factor=4), num_classes=3, num_held_out=30)
    assert numbers(chosen)[:30] == list(range(30))
    assert class_counts(chosen.labels[30:], 3) == (20, 10, 5)


def test_a_class_with_fewer_images_keeps_all() -> None:
    chosen = imbalanced(numbered([0] * 40 + [1] * 3 + [2] * 40), Imbalance(factor=4), num_classes=3)
    assert class_counts(chosen.labels, 3) == (40, 3, 10)


def test_an_empty_class_is_refused() -> None:
    with pytest.raises(InvalidInput, match="factor 41 leaves no image of class 1, which has 40 to train on"):
        imbalanced(numbered([0] * 40 + [1] * 40), Imbalance(factor=41), num_classes=2)
    with pytest.raises(
        InvalidInput, match="no image of class 0, which has 0 to train on where the largest class has 9"
    ):
        imbalanced(numbered([0] * 4 + [1] * 9), Imbalance(factor=2), num_classes=2, num_held_out=4)


def test_no_class_of_digits_is_a_tenth_larger_than_the_mean() -> None:
    """A spec relies on that when it refuses a factor without having seen the data."""
    counts = class_counts(load_train("digits", NO_FILES).labels, 10)
    assert max(counts) <= 1.1 * sum(counts) / 10


def test_the_hash_is_that_of_the_images_that_are_left(tmp_path: Path) -> None:
    digits = load_train("digits", NO_FILES)
    hashes = {
        imbalanced(digits, Imbalance(factor=factor, seed=seed), num_classes=10).sha256()
        for factor, seed in ((5, 0), (5, 1), (6, 0))
    }
    assert len(hashes | {digits.sha256()}) == 4

    def decode(photograph: Photograph) -> Tensor:
        assert isinstance(photograph, Path)
        return torch.full((3, 2, 2), int(photograph.name), dtype=torch.uint8)

    paths = [tmp_path / str(number) for number in range(40)]
    for path in paths:
        path.write_bytes(b"")
    files = ImageFiles(paths, torch.arange(40) % 2, decode)
    chosen = imbalanced(files, Imbalance(factor=4), num_classes=2)
    assert class_counts(chosen.labels, 2) == (20, 5)
    assert [int(image[0, 0, 0]) % 2 for image in chosen.take(torch.arange(25))] == chosen.labels.tolist()
    assert chosen.sha256() != files.sha256()
