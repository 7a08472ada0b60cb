"""How Sphinx makes the pages: `make docs`. Nothing is fetched, neither here nor by the reader's browser."""

from __future__ import annotations

import hashlib
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

# The reference is made from this checkout's docstrings.
sys.path.insert(0, str(Path(__file__).parents[1]))

project = "GKL Bench"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
# The notebook is linked as a file: its outputs are stored in it, and a repository's browser shows them.
exclude_patterns = ["images", "notebooks", "_templates"]
nitpicky = True
# Types of other projects lead nowhere, since nothing is fetched.
nitpick_ignore_regex = [
    ("py:(class|obj|exc|data)", r"(?!gkl\.(client|errors|library|losses|Verdict|Comparison|Training)).*")
]

# Dashes alone: '8/255' is to be copied.
smartquotes_action = "D"
# Docstrings are written with single backticks around code.
default_role = "code"
# Only the names of what runs jobs are needed: an image's pages are made without these gigabytes.
autodoc_mock_imports = [
    name for name in ("torch", "torchvision", "pyautoattack", "robustbench", "joblib") if find_spec(name) is None
]
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
html_title = "GKL Bench documentation"
html_favicon = "../app/web/static/icon.svg"
templates_path = ["_templates"]
html_static_path = ["_static", "../app/web/static/scroll.js"]
html_css_files = ["pages.css"]
html_js_files = ["pages.js", "scroll.js"]
# An announcement above every page; _templates/page.html replaces this text by links to the service.
html_theme_options = {"announcement": "links to the service"}
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


# --- what the theme's pages are changed for ------------------------------------------------------------------------

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
_STYLE_ATTRIBUTE = re.compile(r'(<[a-z][^<>]*?) style="([^"]*)"')
_PARAMETERS = re.compile(r"<dl>\n((?:<dd><em class=\"sig-param\">.*</dd>\n)+)</dl>")
# What a screen reader needs to tell parts of a page from each other.
_NAMES = {
    'class="caption" role="heading"': 'class="caption" role="heading" aria-level="2"',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
}
_ANNOUNCEMENT = re.compile(r'<aside class="announcement-content">(.*?)</aside>', re.DOTALL)


def finish_pages(app: Sphinx, error: Exception | None) -> None:
    """Changes each page of the theme for two things.

    The service's Content-Security-Policy forbids scripts and styles inside pages: each goes into a file that is named
    by its content, and a style attribute becomes `data-style`, for which `_static/pages.css` has a rule. And parts of a
    page are marked up as what they are, so that no check of accessibility finds fault.
    """
    if error is not None or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        before = page.read_text(encoding="utf-8")
        after = _without_inline(app, before, "../" * (len(page.relative_to(app.outdir).parts) - 1) + "_static")
        for found, named in _NAMES.items():
            after = after.replace(found, named)
        after = _ANNOUNCEMENT.sub(r'<div class="announcement-content">\1</div>', after)
        # A list of definitions that defines nothing.
        after = _PARAMETERS.sub(_as_lines, after)
        if after != before:
            page.write_text(after, encoding="utf-8")


def _without_inline(app: Sphinx, text: str, static: str) -> str:
    text = _SCRIPT.sub(lambda found: f'<script src="{static}/{_written(app, found[1], "js")}"></script>', text)
    text = _STYLE.sub(lambda found: f'<link rel="stylesheet" href="{static}/{_written(app, found[1], "css")}">', text)
    return _STYLE_ATTRIBUTE.sub(r'\1 data-style="\2"', text)


def _as_lines(found: re.Match[str]) -> str:
    return f'<div class="sig-lines">\n{found[1].replace("<dd>", "<div>").replace("</dd>", "</div>")}</div>'


def _written(app: Sphinx, content: str, suffix: str) -> str:
    name = f"inline-{hashlib.sha256(content.encode()).hexdigest()[:12]}.{suffix}"
    (Path(app.outdir) / "_static" / name).write_text(content.strip() + "\n", encoding="utf-8")
    return name


def setup(app: Sphinx) -> None:
    app.connect("build-finished", finish_pages)
    app.connect("source-read", add_toctree)
    app.connect("autodoc-process-docstring", read_sections)
