"""Adversarial training with the TRADES, DKL, IKL and GKL objectives."""

from gkl.training.trainer import train

__all__ = ["train"]
