"""Data sets behind the names in `gkl.catalog.DATASETS`."""

from gkl.data.loading import ImageSet, load_test, load_train

__all__ = ["ImageSet", "load_test", "load_train"]
