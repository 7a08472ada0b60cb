"""Loads the data sets that `gkl.catalog.DATASETS` names."""

from gkl.data.corrupted import SEVERITIES, load_corrupted
from gkl.data.images import Images, ImageSet, unit_range
from gkl.data.loading import find_test, load_test, load_train

__all__ = ["SEVERITIES", "ImageSet", "Images", "find_test", "load_corrupted", "load_test", "load_train", "unit_range"]
