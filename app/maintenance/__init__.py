"""What runs beside requests and jobs: the relay, cleanup, metrics, and what takes room on disk."""
