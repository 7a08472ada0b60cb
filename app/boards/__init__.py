"""Leaderboards: measurements, their entries, ranks and exports, RobustBench's format, and what certificates say."""
