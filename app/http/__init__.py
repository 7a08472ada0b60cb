"""What every request passes through: authentication, limits, deadlines, error responses, headers."""
