"""Batched augmentations against one image at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gkl.data.augmentation import augmented_views, autoaugment, bicubic_shear, crop_and_flip, cutout, rotate
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


def as_picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def test_rotation_is_pillows_by_angles_that_fill_the_range() -> None:
    """The released code turns pictures with Pillow, whose fixed-point positions may differ at a pixel's very edge."""
    batch = images(200)
    turned = rotate(batch, 15.0, generator())
    angles = 15.0 * (2 * torch.rand(200, generator=generator()) - 1)
    assert -15 <= angles.min() < -14 < 14 < angles.max() <= 15
    expected = np.stack([np.asarray(as_picture(i).rotate(a)) for i, a in zip(batch, angles.tolist(), strict=True)])
    same = (turned == torch.from_numpy(expected).permute(0, 3, 1, 2)).all(1).double().mean()
    assert same > 0.9995
    assert (turned == 0).any()


def test_a_rotation_follows_crop_and_flip_and_draws_nothing_where_there_is_none() -> None:
    plain, with_rotation = BasicAugmentation(padding=2), BasicAugmentation(padding=2, rotation=15.0)
    stream, other = generator(), generator()
    view = augmented_views(images(), plain, stream)[0]
    assert torch.equal(augmented_views(images(), with_rotation, other)[0], rotate(view, 15.0, stream))
    assert torch.equal(stream.get_state(), other.get_state())
    assert torch.equal(rotate(images(), 0.0, generator()), images())
    floats = images().float() / 255
    assert torch.equal(rotate(floats, 15.0, generator()), rotate(images(), 15.0, generator()).float() / 255)


def cubic(distance: float) -> float:
    """Keys' cubic kernel with a = -1, which Pillow uses in its transforms."""
    d = abs(distance)
    return d**3 - 2 * d**2 + 1 if d < 1 else -(d**3) + 5 * d**2 - 8 * d + 4 if d < 2 else 0.0


@pytest.mark.parametrize("amount", [0.3, -0.2333])
@pytest.mark.parametrize("along", ["x", "y"])
def test_a_bicubic_shear_is_its_definition_in_float64(along: str, amount: float) -> None:
    image = images(1)[0]
    sheared = bicubic_shear(image, amount, along=along, fill=128).double()  # type: ignore[arg-type]
    # Along y it is the same with rows and columns exchanged.
    source, result = (image, sheared) if along == "x" else (image.mT, sheared.mT)
    _, height, width = source.shape
    outside = 0
    for row in range(height):
        for column in range(width):
            position = column + 0.5 + amount * (row + 0.5)
            if not 0 <= position < width:
                outside += 1
                assert (result[:, row, column] == 128).all()
                continue
            position -= 0.5
            expected = torch.zeros(3, dtype=torch.float64)
            for neighbour in range(math.floor(position) - 1, math.floor(position) + 3):
                inside = min(max(neighbour, 0), width - 1)
                expected += cubic(position - neighbour) * source[:, row, inside].double()
            # Pillow cuts the fraction off.
            assert ((result[:, row, column] - expected.clamp(0, 255)).abs() <= 1).all()
    assert outside > 5


def test_autoaugment_fills_with_the_grey_level_that_is_asked_for() -> None:
    """The draws are the same: whatever differs is where no image was left, or what was made of it."""
    batch = torch.full((300, 3, 32, 32), 200, dtype=torch.uint8)
    black, grey = autoaugment(batch, generator()), autoaugment(batch, generator(), fill=128)
    moved = (black != grey).flatten(1).any(1)
    assert 30 < moved.sum() < 200
    # Where later operations changed nothing, the levels are the two fills themselves.
    untouched = [(b.unique().tolist(), g.unique().tolist()) for b, g in zip(black[moved], grey[moved], strict=True)]
    assert ([0, 200], [128, 200]) in untouched
    assert torch.equal(autoaugment(batch, generator(), fill=0, shear="nearest"), black)


def test_autoaugment_shears_bicubically_and_moves_and_turns_as_before() -> None:
    batch = images(400)
    nearest = autoaugment(batch, generator(), fill=128)
    bicubic = autoaugment(batch, generator(), fill=128, shear="bicubic")
    changed = (nearest != bicubic).flatten(1).any(1).float().mean()
    # Two of the 25 sub-policies shear, with probabilities 0.5 and 0.2.
    assert changed == pytest.approx((0.5 + 0.2) / 25, abs=0.025)
    assert changed > 0


def test_the_fields_of_autoaugment_reach_the_second_view_alone() -> None:
    released = AutoAugmentation(kind="autoaug", padding=0, flip=False, fill=128, shear="bicubic")
    stream = generator()
    first, second = augmented_views(images(), released, generator())
    for _ in range(2):
        assert torch.equal(crop_and_flip(images(), 0, flip=False, generator=stream), first)
    assert torch.equal(second, autoaugment(images(), stream, fill=128, shear="bicubic"))
