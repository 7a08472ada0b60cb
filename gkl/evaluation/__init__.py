"""Robust accuracy by AutoAttack, attack by attack and block by block."""

from gkl.evaluation.evaluate import evaluate

__all__ = ["evaluate"]
