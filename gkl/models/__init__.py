"""Networks behind the names in `gkl.catalog.ARCHITECTURES`. User code is never loaded."""

from gkl.models.registry import build_model
from gkl.models.weights import load_model, load_weights, weights_sha256

__all__ = ["build_model", "load_model", "load_weights", "weights_sha256"]
