"""Sets up logging in a run's process: lines on standard error, with times in UTC like all times of the service."""

from __future__ import annotations

import logging
import time


def configure() -> None:
    """Log at INFO and above. Each run's process calls this once."""
    formatter = logging.Formatter("%(asctime)s UTC %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")
    # UTC instead of the host's time zone, which may differ between hosts.
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
