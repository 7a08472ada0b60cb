"""How numbers are written for people, the same on a terminal and on a page."""

from __future__ import annotations

from datetime import datetime


def duration(seconds: float) -> str:
    """
    >>> duration(0.02), duration(0.42), duration(7.6), duration(75), duration(7500)
    ('< 0.1 s', '0.4 s', '8 s', '1 min 15 s', '2 h 05 min')
    """
    if 0 < seconds < 0.05:
        return "< 0.1 s"
    if 0 < seconds < 1:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def percent(share: float, decimals: int = 2) -> str:
    """
    >>> percent(0.5709), percent(1 / 3, 1)
    ('57.09 %', '33.3 %')
    """
    return f"{100 * share:.{decimals}f} %"


def interval(bounds: tuple[float, float]) -> str:
    """
    >>> interval((0.561, 0.581))
    '56.1 to 58.1'
    """
    low, high = bounds
    return f"{100 * low:.1f} to {100 * high:.1f}"


def size(num_bytes: int) -> str:
    """
    >>> size(900), size(45_000_000), size(3_400_000_000)
    ('900 B', '45 MB', '3.4 GB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            value = num_bytes / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{num_bytes} B"


def when(moment: datetime) -> str:
    """Minutes are enough for a table; the page's `datetime` attribute has the rest."""
    return moment.strftime("%Y-%m-%d %H:%M")


def when_exactly(moment: datetime) -> str:
    """To the second, for what happened within a minute."""
    return moment.strftime("%Y-%m-%d %H:%M:%S")
