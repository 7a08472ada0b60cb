"""Trains networks: adversarially with the TRADES, DKL, IKL and GKL objectives, or plainly with cross-entropy."""

from gkl.training.trainer import train

__all__ = ["train"]
