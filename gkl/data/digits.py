"""Loads scikit-learn's handwritten digits: 1,797 real 8x8 images inside the package, so nothing is downloaded."""

from __future__ import annotations

import gzip
from importlib.metadata import distribution

import numpy as np
import torch

from gkl.data.images import ImageSet


def digits(train: bool) -> ImageSet:
    """Load images (N, 1, 8, 8) float32 in [0, 1] and their labels: 1,437 for training or 360 for test.

    The file groups the images by writer. Every fifth image is a test image, so that both parts have images of all
    writers.
    """
    # Read without importing scikit-learn, which imports scipy and pandas and takes longer than a small run.
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    with gzip.open(str(path), "rt", encoding="ascii") as file:
        # Each row holds the 64 pixels of an image, then its class.
        rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.int64))
    # The pixels have 17 gray levels, 0 to 16.
    images = rows[:, :-1].float().reshape(-1, 1, 8, 8) / 16
    labels = rows[:, -1].contiguous()
    is_test = torch.arange(len(labels)) % 5 == 0
    chosen = ~is_test if train else is_test
    return ImageSet(images[chosen], labels[chosen])
