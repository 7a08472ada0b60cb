"""What every request passes: who asks, limits, deadlines, the form of an error, headers."""
