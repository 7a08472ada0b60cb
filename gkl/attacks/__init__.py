"""Attacks, the perturbations that they may make, and PGD for training."""
