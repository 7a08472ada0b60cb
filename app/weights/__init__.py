"""Uploads of weights."""
