"""Batched augmentations against one image at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gkl.data.augmentation import augmented_views, autoaugment, crop_and_flip, cutout
from gkl.spec import AutoAugmentation, BasicAugmentation, CutoutAugmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 64) -> Tensor:
    return torch.randint(1, 256, (count, 3, 12, 10), generator=generator(), dtype=torch.uint8)


def all_crops(image: Tensor, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop that the augmentation may make of an image, by its pixels."""
    padded = F.pad(image, (padding,) * 4)
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + 12, left : left + 10]
            found[crop.contiguous().numpy().tobytes()] = (top, left, False)
            found[crop.flip(2).contiguous().numpy().tobytes()] = (top, left, True)
    return found


def test_every_image_is_a_crop_of_itself_and_all_crops_and_flips_come() -> None:
    batch = images(400)
    views = crop_and_flip(batch, 2, flip=True, generator=generator())
    assert views.shape == batch.shape
    drawn = [all_crops(image, 2)[view.contiguous().numpy().tobytes()] for image, view in zip(batch, views, strict=True)]
    assert {(top, left) for top, left, _ in drawn} == {(top, left) for top in range(5) for left in range(5)}
    mirrored = sum(flip for _, _, flip in drawn)
    assert 150 < mirrored < 250


def test_without_padding_and_flip_nothing_changes() -> None:
    assert torch.equal(crop_and_flip(images(), 0, flip=False, generator=generator()), images())


def test_cutout_zeroes_one_square_that_may_hang_over_the_edge() -> None:
    views = cutout(images(200), 4, generator())
    sizes = set()
    for view in views:
        hole = (view == 0).all(dim=0)
        rows, columns = hole.any(1).nonzero(), hole.any(0).nonzero()
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert hole.sum() == height * width
        sizes.add((height, width))
    assert max(sizes) == (4, 4)
    assert (2, 4) in sizes


def test_autoaugment_depends_on_its_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = autoaugment(images(), generator())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(autoaugment(images(), generator()), first)
    assert not torch.equal(autoaugment(images(), generator(1)), first)
    # Most images are changed, each by its own draw.
    changed = (first != images()).flatten(1).any(1).float().mean()
    assert changed > 0.5


def test_floats_stay_floats_in_the_unit_range() -> None:
    batch = images().float() / 255
    for augmentation in (AutoAugmentation(kind="autoaug"), CutoutAugmentation(kind="cutout", size=3)):
        for view in augmented_views(batch, augmentation, generator()):
            assert view.dtype == torch.float32
            assert view.min() >= 0
            assert view.max() <= 1


def test_the_number_of_views_is_that_of_the_kind() -> None:
    def count(augmentation: BasicAugmentation | None) -> int:
        return len(augmented_views(images(4), augmentation, generator()))

    assert [count(None), count(BasicAugmentation())] == [1, 1]
    assert [count(AutoAugmentation(kind="autoaug")), count(CutoutAugmentation(kind="cutout"))] == [2, 2]
