"""What speaks for or against an entry beside its own evaluation: examples and certificates that people send,
transfers, and comparisons.
"""
