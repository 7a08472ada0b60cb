from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from gkl.data.resized_crop import draw_box, resized_crop
from gkl.spec import ResizedCropAugmentation
from tests.data_files import write_photograph


def test_a_crop_has_torchvisions_pixels(tmp_path: Path) -> None:
    path = write_photograph(tmp_path / "photograph.JPEG", 150, 120)
    crop = resized_crop(ResizedCropAugmentation(kind="resized_crop"), 64)
    photograph = v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))
    assert photograph.shape == (3, 120, 150)
    mirrored = 0
    for seed in range(20):
        found = crop(path, seed)
        assert (found.shape, found.dtype) == ((3, 64, 64), torch.uint8)
        assert torch.equal(found, crop(path, seed))
        box = draw_box(random.Random(seed), 120, 150, 0.08)
        image = Image.open(path).convert("RGB")
        expected = v2.functional.resized_crop(image, *box, size=[64, 64], antialias=True)
        expected = v2.functional.pil_to_tensor(expected)
        if not torch.equal(found, expected):
            assert torch.equal(found, expected.flip(2))
            mirrored += 1
    assert 4 <= mirrored <= 16
    plain = resized_crop(ResizedCropAugmentation(kind="resized_crop", flip=False), 64)
    assert {torch.equal(plain(path, seed), crop(path, seed)) for seed in range(20)} == {True, False}


def test_boxes_are_drawn_as_torchvision_draws_them() -> None:
    """Equal distributions: the quantiles of area, ratio and position of 4,000 boxes of each."""
    image = torch.empty(3, 375, 500)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = v2.RandomResizedCrop(224)
        drawn = [theirs.make_params([image]) for _ in range(4000)]
    stream = random.Random(0)
    ours = np.array([draw_box(stream, 375, 500, 0.08) for _ in range(4000)], dtype=float)
    expected = np.array([[each[name] for name in ("top", "left", "height", "width")] for each in drawn], dtype=float)
    levels = np.linspace(0.1, 0.9, 9)
    for measured in (
        lambda box: box[:, 2] * box[:, 3] / (375 * 500),
        lambda box: np.log(box[:, 3] / box[:, 2]),
        lambda box: box[:, 0] / 375,
        lambda box: box[:, 1] / 500,
    ):
        difference = np.quantile(measured(ours), levels) - np.quantile(measured(expected), levels)
        assert np.abs(difference).max() < 0.04


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(100, 1000, (0, 433, 100, 133)), (1000, 100, (433, 0, 133, 100)), (100, 100, (0, 0, 100, 100))],
)
def test_an_image_that_no_box_fits_into_is_cropped_in_the_middle(
    height: int, width: int, box: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Largest(random.Random):
        """Draws the largest area, and the widest box."""

        def uniform(self, a: float, b: float) -> float:
            return b + (math.log(4) if b < 1 else 0)

    assert draw_box(Largest(), height, width, 0.08) == box
