"""Safe rendering of HTML and LaTeX in imported footnotes."""

from __future__ import annotations

import re
from functools import lru_cache

import nh3
from latex2mathml.converter import convert
from markupsafe import Markup, escape

_FORMULA = re.compile(r"\\\((.{1,200}?)\\\)")
_MATHML = {"math", "mrow", "mi", "mo", "mn", "mtext", "msub", "msup", "msubsup", "mfrac", "msqrt", "mspace", "mover"}
_TAGS = {"a", "b", "br", "em", "i", "strong", "sub", "sup"} | _MATHML


# Longer footnotes are cut, since converting formulas is slow.
_MAX_LENGTH, _MAX_FORMULAS = 10_000, 20


@lru_cache(maxsize=1000)
def rich(text: str) -> Markup:
    r"""Keep links, line breaks and simple formulas; remove all other HTML.

    >>> str(rich(r'a<br>b <script>c</script> & <a href="https://example.org" onclick="d">e</a>'))
    'a<br>b  &amp; <a href="https://example.org" rel="nofollow noopener noreferrer">e</a>'
    >>> "<math" in rich(r"\(\ell_{\infty}\) = 8/255")
    True
    """
    pieces = _FORMULA.split(text[:_MAX_LENGTH], maxsplit=_MAX_FORMULAS)
    # Every other piece is a formula. The converter does not escape, so its output is cleaned with the rest.
    html = "".join(_formula(piece) if number % 2 else piece for number, piece in enumerate(pieces))
    return Markup(
        nh3.clean(
            html,
            tags=_TAGS,
            attributes={"a": {"href"}},
            url_schemes={"http", "https"},
            link_rel="nofollow noopener noreferrer",
        )
    )


def _formula(latex: str) -> str:
    try:
        return convert(latex)
    except Exception:  # noqa: BLE001 - the converter raises errors of many kinds
        return str(escape(rf"\({latex}\)"))
