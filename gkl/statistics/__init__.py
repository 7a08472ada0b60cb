"""Confidence intervals and statistical tests for accuracies. Free of torch."""
