"""Confidence intervals of proportions."""

from __future__ import annotations

import math


def wilson_interval(successes: float, trials: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a proportion; with the default z, at 95 % confidence.

    Neither number needs to be whole, since an effective number of trials may be a fraction.

    >>> low, high = wilson_interval(5709, 10000)
    >>> f"{low:.4f} {high:.4f}"
    '0.5612 0.5806'
    """
    if trials <= 0:
        return (0.0, 1.0)
    p = successes / trials
    scale = 1 + z * z / trials
    center = (p + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return (max(0.0, center - half), min(1.0, center + half))
