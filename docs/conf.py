"""How Sphinx makes the pages: `make docs`. Nothing is fetched, neither here nor by the reader's browser."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

project = "GKL Bench"
extensions = ["myst_parser"]
exclude_patterns = ["images"]
nitpicky = True

# Links to headings are written as a repository's browser makes them.
myst_heading_anchors = 3
# A page's own "next" and "previous" come from the index; its addresses stay as they are written.
myst_linkify_fuzzy_links = False
highlight_language = "text"

html_theme = "furo"
html_title = "GKL Bench"
html_copy_source = False
html_show_copyright = False

# An item of a list in the index that begins with a link to a page: that list is the contents of its heading.
_CONTENTS = re.compile(r"^- \[[^]]+\]\(([^)#:]+)\.md\)", re.MULTILINE)


def add_toctree(app: Sphinx, name: str, source: list[str]) -> None:
    """The index lists its pages once, as links; here the same list becomes Sphinx's tree of contents."""
    if name not in ("index", "decisions/index"):
        return
    parts = re.split(r"^(?=## )", source[0], flags=re.MULTILINE)
    source[0] = "".join(part + _toctree(part) for part in parts)


def _toctree(part: str) -> str:
    pages = _CONTENTS.findall(part)
    if not pages:
        return ""
    heading = re.match(r"## (.+)", part)
    caption = f":caption: {heading[1]}\n" if heading else ""
    return f"\n\n```{{toctree}}\n:hidden:\n{caption}\n" + "\n".join(pages) + "\n```\n\n"


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_toctree)
