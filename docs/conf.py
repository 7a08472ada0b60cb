"""How Sphinx makes the pages: `make docs`. Nothing is fetched, neither here nor by the reader's browser."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

# The reference is made from this checkout's docstrings.
sys.path.insert(0, str(Path(__file__).parents[1]))

project = "GKL Bench"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
# The notebook is linked as a file: its outputs are stored in it, and a repository's browser shows them.
exclude_patterns = ["images", "notebooks"]
nitpicky = True
# Types of other projects lead nowhere, since nothing is fetched.
nitpick_ignore_regex = [("py:(class|obj|exc|data)", r"(?!gkl\.(errors|library|Verdict|Comparison|Training)).*")]

# Dashes alone: '8/255' is to be copied.
smartquotes_action = "D"
# Docstrings are written with single backticks around code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# What a name says better than its members.
autodoc_type_aliases = {"Data": "Data"}
python_use_unqualified_type_names = True
# One argument a line.
python_maximum_signature_line_length = 60

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


def read_sections(app: Sphinx, what: str, name: str, *others: Any) -> None:
    """Args, Returns and Raises as lists. A sentence about an attribute has none, and may have a colon."""
    obj, options, lines = others
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, Config(napoleon_use_rtype=False), app, what, name, obj, options).lines()


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_toctree)
    app.connect("autodoc-process-docstring", read_sections)
