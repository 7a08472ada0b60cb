"""Adversarial training with the TRADES and GKL objectives."""

from gkl.training.trainer import train

__all__ = ["train"]
