"""The log of a run's process: lines on standard error, in UTC as everything else that the service tells of a run."""

from __future__ import annotations

import logging
import time


def configure() -> None:
    """Log at INFO and above. Called once, by the process that is the run."""
    formatter = logging.Formatter("%(asctime)s UTC %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")
    # Not the time zone of the host, which may be another one on each.
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
