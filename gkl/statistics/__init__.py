"""Intervals and tests for accuracies. Free of torch."""
