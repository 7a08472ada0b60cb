"""Weights that people send, and what is in them."""
