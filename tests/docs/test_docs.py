"""The documentation as it is read: in a repository's browser, and as pages opened from disk."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import gkl
import gkl.client
import gkl.losses
from tests.docs.shell_blocks import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
_LINK = re.compile(r"!?\[(?:[^\]\\]|\\.)*\]\(<?([^)\s>]+)>?\)")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "--keep-going", "-b", "html", DOCS, out / "html"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.mark.long
def test_the_pages_can_be_built_without_what_runs_jobs(html: Path, tmp_path: Path) -> None:
    """As the API's image does."""
    code = """
import importlib.util, sys
missing, found = {"torch", "torchvision", "pyautoattack", "robustbench", "sklearn", "joblib"}, importlib.util.find_spec
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuses())
importlib.util.find_spec = lambda name, package=None: None if name in missing else found(name, package)
from sphinx.cmd.build import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "-q", "-W", "-n", "--keep-going", "-b", "html", DOCS, tmp_path / "html"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in html.rglob("*.html")} == {p.name for p in (tmp_path / "html").rglob("*.html")}
    assert 'id="gkl.evaluate"' in (tmp_path / "html" / "reference.html").read_text(encoding="utf-8")


# --- Markdown ----------------------------------------------------------------------------------------------------


def _without_code(text: str) -> str:
    text = re.sub(r"^(```|~~~).*?^\1\s*$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def _links(page: Path) -> list[str]:
    found = _LINK.findall(_without_code(page.read_text(encoding="utf-8")))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def _anchors(page: Path) -> set[str]:
    """As a repository's browser makes them of headings."""
    text = re.sub(r"^```.*?^```\s*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#{1,6} +(.+?) *$", text, flags=re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in _links(page):
        path, _, anchor = link.partition("#")
        target = page if not path else (page.parent / unquote(path)).resolve()
        assert target.exists(), f"{link}: there is no {target.relative_to(ROOT)}"
        assert target.is_relative_to(ROOT)
        if anchor:
            assert anchor in _anchors(target), f"{link}: no such heading"


# A decision and the changelog may name what was there at their time.
_OF_TODAY = [page for page in PAGES if page.parent.name != "decisions" and page.name != "CHANGELOG.md"]


@pytest.mark.parametrize("page", _OF_TODAY, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_the_repository_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(
        r"(?<![\w/.-])(?:app|benchmarks|docker|docs|gkl|tests|worker)/[\w./-]*\w", page.read_text(encoding="utf-8")
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_every_page_is_in_the_index() -> None:
    listed = {(index.parent / link).resolve() for index in DOCS.rglob("index.md") for link in _links(index)}
    assert listed >= set(DOCS.rglob("*.md")) - {DOCS / "index.md"}


# --- HTML --------------------------------------------------------------------------------------------------------


class _Loads(HTMLParser):
    """What a browser fetches by itself while it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.has_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        names = {"link": ["href"], "a": [], "form": []}.get(tag, ["src", "srcset", "href", "data", "poster"])
        self.addresses += [value for name in names if (value := found.get(name))]
        self.addresses += re.findall(r"url\(([^)]+)\)", found.get("style") or "")
        self.has_title |= tag == "title"


def _is_outside(address: str) -> bool:
    return re.match(r"\s*['\"]?(?:[a-z]+:)?//", address) is not None


def test_no_page_loads_anything_from_outside(html: Path) -> None:
    pages = list(html.rglob("*.html"))
    assert html / "index.html" in pages
    for page in pages:
        loads = _Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.has_title
        assert not [address for address in loads.addresses if _is_outside(address)], page


def test_no_style_loads_anything_from_outside(html: Path) -> None:
    for style in html.rglob("*.css"):
        addresses = re.findall(r"url\(([^)]+)\)|@import\s+([^;]+)", style.read_text(encoding="utf-8"))
        assert not [pair for pair in addresses if any(map(_is_outside, pair))], style


def test_no_page_has_a_script_or_a_style_inside_it(html: Path) -> None:
    """The service's Content-Security-Policy would stop it."""
    rules = (html / "_static" / "pages.css").read_text(encoding="utf-8")
    for page in html.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|<[a-z][^<>]*\sstyle=|<[a-z][^<>]*\son[a-z]+=", text), page
        for moved in set(re.findall(r'data-style="[^"]*"', text)):
            assert f"[{moved}]" in rules, f"{page.name}: {moved} has no rule in pages.css"


def test_every_page_leads_back_to_the_service(html: Path) -> None:
    for page in html.rglob("*.html"):
        links = re.findall(r'href="([^"]*)">Leaderboards</a>', page.read_text(encoding="utf-8"))
        assert [(page.parent / link).resolve() for link in links] == [html.parent.resolve()], page


def test_pictures_bring_everything_with_them() -> None:
    for picture in (DOCS / "images").glob("*.svg"):
        text = picture.read_text(encoding="utf-8")
        assert not re.findall(r"(?:href|src)=[\"'](?!#)|@import|<script|<foreignObject", text)
        assert "prefers-color-scheme: dark" in text
    for photo in (DOCS / "images").glob("*.png"):
        assert photo.stat().st_size < 300_000


# --- the reference -----------------------------------------------------------------------------------------------


def _public() -> dict[str, Any]:
    return {name: getattr(gkl, name) for name in gkl.__all__ if name != "__version__"}


def test_the_reference_has_every_public_name(html: Path) -> None:
    page = (html / "reference.html").read_text(encoding="utf-8")
    for name, found in _public().items():
        assert f'id="gkl.{name}"' in page, name
        if inspect.isclass(found):
            for member in vars(found):
                assert member.startswith("_") or f'id="gkl.{name}.{member}"' in page, f"{name}.{member}"


def test_the_reference_of_the_client_has_every_public_name(html: Path) -> None:
    page = (html / "client-reference.html").read_text(encoding="utf-8")
    for name in gkl.client.__all__:
        assert f'id="gkl.client.{name}"' in page, name
    for member in vars(gkl.client.Client):
        assert member.startswith("_") or f'id="gkl.client.Client.{member}"' in page, member


def test_the_reference_has_every_loss(html: Path) -> None:
    page = (html / "reference.html").read_text(encoding="utf-8")
    losses = [
        name
        for name, found in vars(gkl.losses).items()
        if inspect.isfunction(found) and name.endswith(("_loss", "_parts"))
    ]
    assert len(losses) == 7
    for name in losses:
        assert f'id="gkl.losses.{name}"' in page, name


def test_public_docstrings_say_what_comes_in_and_what_may_go_wrong() -> None:
    for name, found in _public().items():
        text = inspect.getdoc(found)
        assert text, name
        if inspect.isclass(found):
            for member, value in vars(found).items():
                assert member.startswith("_") or inspect.getdoc(value), f"{name}.{member}"
            continue
        arguments = text.partition("Args:\n")[2].partition("\n\n")[0]
        described = re.findall(r"^    (\w+): ", arguments, flags=re.MULTILINE)
        assert described == list(inspect.signature(found).parameters), name
        assert "Raises:\n    InvalidInput: " in text, name


def test_signatures_read_as_they_are_written(html: Path) -> None:
    page = (html / "reference.html").read_text(encoding="utf-8")
    for unreadable in ("ForwardRef", "torch.nn.modules", "&lt;factory&gt;", "object at 0x", "_SHOWN"):
        assert unreadable not in page
    assert "'8/255'" in page.replace("&#39;", "'")


# --- what pages say of the program -------------------------------------------------------------------------------


def test_the_page_of_commands_is_the_help_of_today() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import command_line; print(command_line.page(), end='')"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{DOCS}:{ROOT}", "PATH": "/usr/bin:/bin"},
    )
    written = (DOCS / "command-line.md").read_text(encoding="utf-8")
    assert written == done.stdout, "run: .venv/bin/python docs/command_line.py"


def _commands() -> dict[str, set[str]]:
    import typer

    from app.cli.main import cli

    def walk(before: str, group: typer.core.TyperGroup) -> Iterator[tuple[str, set[str]]]:
        for name, command in group.commands.items():
            if isinstance(command, typer.core.TyperGroup):
                yield from walk(f"{before}{name} ", command)
            else:
                yield f"{before}{name}", {option for parameter in command.params for option in parameter.opts}

    group = typer.main.get_command(cli)
    assert isinstance(group, typer.core.TyperGroup)
    return dict(walk("", group))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_on_a_page_exists(page: Path) -> None:
    known = _commands()
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"(?:bin/|[`$] ?|^ {4}|^)gklbench ([a-z].*)", text, flags=re.MULTILINE):
        words = re.split(r"[\s`|;&)]+", line)
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0].rstrip(".,")
        if name == "token":
            continue
        assert name in known, f"gklbench {line}"
        for option in re.findall(r"(?<!\S)--[a-z-]+", re.split(r"[`|;&]", line)[0]):
            assert option in known[name] | {"--help"}, f"gklbench {line}"


def test_every_address_on_a_page_is_in_the_openapi_document() -> None:
    from app.core.settings import Settings
    from app.main import create_app

    paths = create_app(Settings()).openapi()["paths"]
    patterns = [re.compile(re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(path))) for path in paths]
    for page in PAGES:
        for address in re.findall(r"/api/v1(?:/[\w{}.-]+)+", page.read_text(encoding="utf-8")):
            filled = re.sub(r"\{[^}]*\}", "x", address).rstrip(".")
            assert any(pattern.fullmatch(filled) for pattern in patterns), f"{page.name}: {address}"
