"""Texts and numbers for people, formatted alike on terminals and pages."""

from __future__ import annotations

import re
from datetime import datetime

# Unicode's format characters and others without a shape (Default_Ignorable_Code_Point): marks and overrides of
# direction, joiners, soft hyphens, tags, variation selectors, fillers; and separators that only some programs break at.
_HIDDEN = (
    "\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160"
    "\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Persian and the languages of India need the two joiners between letters, emoji also the variation selectors.
_JOINED = (
    "(?:(?<=[^\u0000-\u02ff])[\u200c\u200d](?=[^\u0000-\u02ff])"
    "|(?<=[\u203c-\u3299\U0001f000-\U0001faff])[\ufe0e\ufe0f])"
)
_SHOWN_AS_MARK = re.compile(f"(?!{_JOINED})[{_HIDDEN}]")

_SIMPLE_TAG = re.compile(r"</?(?:a|b|br|em|i|strong|sub|sup)\b[^<>]*>", re.IGNORECASE)


def visible(text: str) -> str:
    """Make hidden characters visible: each one that is invisible or changes the order of the text becomes a mark.

    >>> visible("Ada \N{RIGHT-TO-LEFT OVERRIDE}99.9 ecalevoL"), visible("Lovelace\N{ZERO WIDTH SPACE}")
    ('Ada �99.9 ecalevoL', 'Lovelace�')
    """
    return _SHOWN_AS_MARK.sub("\N{REPLACEMENT CHARACTER}", text)


def plain(text: str) -> str:
    """Remove the HTML tags that a footnote may have, for places without markup; other tags stay as text.

    >>> plain("GitHub,<br>Sep 2019")
    'GitHub, Sep 2019'
    """
    return re.sub(r"\s+", " ", _SIMPLE_TAG.sub(" ", text)).strip()


def hidden_characters(text: str) -> list[str]:
    """The hidden characters in a text, each once: ['U+202E'].

    >>> hidden_characters("a\N{RIGHT-TO-LEFT OVERRIDE}b\N{ZERO WIDTH SPACE}c")
    ['U+200B', 'U+202E']
    """
    return sorted({f"U+{ord(found):04X}" for found in _SHOWN_AS_MARK.findall(text)})


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "job"), count(2, "job")
    ('1 job', '2 jobs')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def millions(number: int) -> str:
    """A number of parameters with three significant digits.

    >>> millions(36_479_194), millions(1_234_567), millions(549_290), millions(3682), millions(266_796_506)
    ('36.5M', '1.23M', '549k', '3.68k', '267M')
    """
    unit, letter = (1_000_000, "M") if number >= 999_500 else (1000, "k")
    value = number / unit
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}{letter}"


def as_sentence(text: str) -> str:
    """A text with a capital letter and a full stop.

    >>> as_sentence("there is no job 7")
    'There is no job 7.'
    """
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def duration(seconds: float) -> str:
    """A duration with at most two units.

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


def about(seconds: float) -> str:
    """An estimated duration, with one or two digits.

    >>> about(20), about(70), about(725), about(5000), about(30_000), about(200_000)
    ('less than a minute', 'about 1 minute', 'about 12 minutes', 'about 1.5 hours', 'about 8 hours', 'about 2 days')
    """
    if seconds < 45:
        return "less than a minute"
    if seconds < 55 * 60:
        return f"about {count(round(seconds / 60), 'minute')}"
    hours = seconds / 3600
    if hours < 4:
        halves = f"{round(2 * hours) / 2:g}"
        return f"about {halves} hour{'' if halves == '1' else 's'}"
    return f"about {round(hours)} hours" if hours < 36 else f"about {round(hours / 24)} days"


def percent(share: float, decimals: int = 2) -> str:
    """A share in percent.

    >>> percent(0.5709), percent(1 / 3, 1)
    ('57.09 %', '33.3 %')
    """
    return f"{100 * share:.{decimals}f} %"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign.

    >>> points(0.0123), points(-0.2), points(-0.00001)
    ('+1.23', '\N{MINUS SIGN}20.00', '0.00')
    """
    text = f"{abs(100 * difference):.2f}"
    sign = "+" if difference > 0 else "\N{MINUS SIGN}"
    return text if float(text) == 0 else sign + text


def interval(bounds: tuple[float, float]) -> str:
    """An interval of shares in percent, without the sign.

    >>> interval((0.561, 0.581))
    '56.1 to 58.1'
    """
    low, high = bounds
    return f"{100 * low:.1f} to {100 * high:.1f}"


def size(num_bytes: int) -> str:
    """A number of bytes with a decimal unit.

    >>> size(900), size(45_000_000), size(3_400_000_000)
    ('900 B', '45 MB', '3.4 GB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            value = num_bytes / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{num_bytes} B"


def when(moment: datetime) -> str:
    """A time to the minute, for tables; the page's `datetime` attribute is exact."""
    return moment.strftime("%Y-%m-%d %H:%M")


def when_exactly(moment: datetime) -> str:
    """A time to the second."""
    return moment.strftime("%Y-%m-%d %H:%M:%S")
