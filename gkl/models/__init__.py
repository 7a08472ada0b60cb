"""Networks behind the names in `gkl.catalog.ARCHITECTURES`. User code is never loaded."""

from gkl.models.registry import build_model, load_weights

__all__ = ["build_model", "load_weights"]
