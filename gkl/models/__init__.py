"""Builds the networks that `gkl.catalog.ARCHITECTURES` names and loads their weights. User code is never loaded."""

from gkl.models.registry import build_model
from gkl.models.weights import LoadedModel, load_model, load_weights, read_model, weights_sha256

__all__ = ["LoadedModel", "build_model", "load_model", "load_weights", "read_model", "weights_sha256"]
