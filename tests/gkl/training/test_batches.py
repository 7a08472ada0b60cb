from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gkl.data import ImageSet
from gkl.data.images import ImageFiles
from gkl.data.synthetic import SyntheticImages
from gkl.errors import InvalidInput
from gkl.training.batches import Batches
from tests.data_files import write_npz

CPU = torch.device("cpu")


def numbered(count: int) -> ImageSet:
    """Images that are their own number."""
    numbers = torch.arange(count)
    return ImageSet(numbers.to(torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32).contiguous(), numbers % 10)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_an_epoch_is_every_image_once_in_another_order_less_those_held_out() -> None:
    batches = Batches(numbered(50), batch_size=8, device=CPU, num_held_out=10)
    stream = generator()
    orders = [torch.cat(batches.order(stream).real) for _ in range(2)]
    assert batches.per_epoch == 5
    for order in orders:
        assert sorted(order.tolist()) == list(range(10, 50))
    assert not torch.equal(*orders)
    assert batches.held_out().tolist() == list(range(10))


def test_every_batch_has_its_share_of_generated_images(tmp_path: Path) -> None:
    write_npz(tmp_path / "some.npz", 200)
    synthetic = SyntheticImages(tmp_path / "some.npz", image_shape=(3, 32, 32), num_classes=10)
    batches = Batches(
        numbered(50), batch_size=10, device=CPU, num_held_out=5, synthetic=synthetic, synthetic_fraction=0.7
    )
    order = batches.order(generator())
    # As many batches as a pass over the data set would have, held-out images included.
    assert batches.per_epoch == len(order.real) == 5
    fetched = list(batches.iterate(order))
    for (images, labels, rows), index, drawn in zip(fetched, order.real, order.generated or [], strict=True):
        assert rows is None
        assert images.shape == (10, 3, 32, 32)
        assert len(index) == 3
        assert index.min() >= 5
        assert images[:3, 0, 0, 0].tolist() == index.tolist()
        expected, expected_labels = synthetic.take(drawn)
        assert torch.equal(images[3:], expected)
        assert labels.tolist() == [*(index % 10).tolist(), *expected_labels.tolist()]


@pytest.mark.parametrize("first", [0, 3, 4])
def test_images_in_files_come_as_those_in_memory_and_from_any_batch_on(first: int, tmp_path: Path) -> None:
    in_memory = numbered(20)

    def decode(path: Path) -> Tensor:
        return in_memory.images[int(path.name)]

    in_files = ImageFiles([Path(str(number)) for number in range(20)], in_memory.labels, decode)
    for data in (in_memory, in_files):
        batches = Batches(data, batch_size=6, device=CPU)
        order = batches.order(generator())
        fetched = list(batches.iterate(order, first))
        assert [rows.tolist() for _, _, rows in fetched] == [i.tolist() for i in order.real[first:]]
        assert [images[:, 0, 0, 0].tolist() for images, _, _ in fetched] == [i.tolist() for i in order.real[first:]]


def test_an_image_that_cannot_be_decoded_is_an_error_of_the_run(tmp_path: Path) -> None:
    def decode(path: Path) -> Tensor:
        raise OSError(f"{path} is gone")

    batches = Batches(ImageFiles([tmp_path / "a"], torch.tensor([0]), decode), batch_size=1, device=CPU)
    with pytest.raises(OSError, match="is gone"):
        list(batches.iterate(batches.order(generator())))


def test_nothing_left_to_train_on_is_refused() -> None:
    with pytest.raises(InvalidInput, match="of the 20 training images found, 20 are held out"):
        Batches(numbered(20), batch_size=4, device=CPU, num_held_out=20)


def test_the_smaller_last_batch_can_be_dropped() -> None:
    batches = Batches(numbered(50), batch_size=8, device=CPU, num_held_out=7, drop_last=True)
    whole = Batches(numbered(50), batch_size=8, device=CPU, num_held_out=7)
    assert (batches.per_epoch, whole.per_epoch) == (5, 6)
    kept, all_of_them = batches.order(generator()).real, whole.order(generator()).real
    assert [index.tolist() for index in kept] == [index.tolist() for index in all_of_them[:5]]
    assert len(all_of_them[5]) == 3
    assert len(list(batches.iterate(batches.order(generator())))) == 5
    # None is smaller here.
    assert Batches(numbered(48), batch_size=8, device=CPU, drop_last=True).per_epoch == 6
    with pytest.raises(InvalidInput, match="the 7 training images found are less than a batch of 8"):
        Batches(numbered(7), batch_size=8, device=CPU, drop_last=True)
