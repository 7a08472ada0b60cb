"""scikit-learn's handwritten digits: 1,797 real 8x8 images inside the package, so nothing is downloaded."""

from __future__ import annotations

import torch

from gkl.data.images import ImageSet


def digits(train: bool) -> ImageSet:
    """Images (N, 1, 8, 8) float32 in [0, 1] and labels of the fixed split: 1,437 or 360.

    The file groups its images by writer; every fifth one is a test image, so both parts hold all writers.
    """
    # Imported here, like all that only some runs need: it takes a second, and pandas with it.
    from sklearn.datasets import load_digits  # noqa: PLC0415

    raw = load_digits()
    # 17 gray levels, 0 to 16.
    images = torch.from_numpy(raw.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(raw.target).long()
    is_test = torch.arange(len(labels)) % 5 == 0
    chosen = ~is_test if train else is_test
    return ImageSet(images[chosen], labels[chosen])
