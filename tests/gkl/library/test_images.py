"""Images and labels in whatever form they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from gkl.data import ImageSet, load_test
from gkl.errors import InvalidInput
from gkl.library.images import image_set
from tests.specs import NO_FILES

IMAGES = torch.randint(0, 256, (6, 3, 8, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6)


class OneByOne(Dataset[Any]):
    """With a length and places, and without an iterator of its own."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Any:
        return IMAGES[i], i


@pytest.mark.parametrize(
    "given",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS],
        ImageSet(IMAGES, LABELS),
        (IMAGES.numpy(), LABELS.numpy()),
        (IMAGES.numpy()[::-1][::-1], LABELS.tolist()),
        (IMAGES.permute(0, 2, 3, 1), LABELS),
        (IMAGES.permute(0, 2, 3, 1).numpy(), LABELS.numpy().astype(np.uint8)),
        (IMAGES.to(memory_format=torch.channels_last), LABELS),
        (list(IMAGES), LABELS),
        TensorDataset(IMAGES, LABELS),
        DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4),
        OneByOne(),
        [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:]), (IMAGES[:0], LABELS[:0])],
    ],
)
def test_every_form_is_the_same_set(given: Any) -> None:
    found, name = image_set(given, num_points=None, datasets_dir=None)
    assert torch.equal(found.images, IMAGES)
    assert found.labels.tolist() == LABELS.tolist()
    assert name is None
    first, _ = image_set(given, num_points=5, datasets_dir=None)
    assert torch.equal(first.images, IMAGES[:5])
    assert len(first) == 5


def test_a_data_set_has_a_name() -> None:
    found, name = image_set("digits", num_points=7, datasets_dir=None)
    assert name == "digits"
    assert torch.equal(found.images, load_test("digits", NO_FILES, 7).images)


def test_it_is_a_copy() -> None:
    for given in ((IMAGES, LABELS), ImageSet(IMAGES, LABELS), (IMAGES.numpy(), LABELS.numpy())):
        before = IMAGES.clone()
        found, _ = image_set(given, num_points=None, datasets_dir=None)
        found.images.zero_()
        found.labels.zero_()
        assert torch.equal(before, IMAGES)
        assert LABELS.tolist() == list(range(6))


def test_no_more_of_a_loader_is_read_than_is_wanted() -> None:
    read = []

    def batches() -> Any:
        for start in range(0, 6, 2):
            read.append(start)
            yield IMAGES[start : start + 2], LABELS[start : start + 2]

    found, _ = image_set(batches(), num_points=3, datasets_dir=None)
    assert (len(found), read) == (3, [0, 2])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("cifar", "unknown data set 'cifar'; did you mean 'cifar10'"),
        (3, "the data is a int; give images and labels as a pair"),
        ([IMAGES[:2], IMAGES[:2], IMAGES[:2]], "yields a Tensor; it must yield images with their labels"),
        ([], "holds no image"),
        (({"a": 1}, LABELS), "the images are a dict of object; give a tensor or an array of numbers"),
        ((["a", "b"], LABELS), "the images are a list of"),
        (([IMAGES[0], IMAGES[0, :, :4]], LABELS), "the images are a list of tensors of several shapes"),
        ([(IMAGES[:2], LABELS[:2]), (IMAGES[:2, :, :4], LABELS[:2])] * 2, "images of several shapes"),
        (([[1], [1, 2]], LABELS), "the images are a list of several shapes"),
    ],
)
def test_what_is_none_is_refused_in_a_sentence(given: Any, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        image_set(given, num_points=None, datasets_dir=None)
    assert says in str(refused.value)


def test_more_points_than_there_are() -> None:
    with pytest.raises(InvalidInput, match="num_points is 7, and there are 6 images"):
        image_set((IMAGES, LABELS), num_points=7, datasets_dir=None)


def test_where_a_data_sets_files_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for directory, given in ((tmp_path / "one", tmp_path / "one"), (tmp_path / "two", None)):
        monkeypatch.setenv("GKLBENCH_DATASETS_DIR", str(tmp_path / "two"))
        with pytest.raises(InvalidInput, match=str(directory / "cifar10")):
            image_set("cifar10", num_points=None, datasets_dir=given)
