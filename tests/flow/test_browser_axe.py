"""Every page, looked at by axe-core in a real browser: wide and narrow, light and dark."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from fastapi.routing import iter_route_contexts
from playwright.sync_api import Browser, ConsoleMessage, Page, expect
from starlette.routing import Mount

from app import jobs
from app.boards import robust_points, robustbench
from app.core.settings import Settings
from app.db.database import Database
from app.jobs import job_log
from app.main import create_app
from app.store import open_store
from tests.app.boards.test_clean_boards import measure_clean
from tests.app.boards.test_entries import ENTRIES
from tests.app.boards.test_results import measure, train
from tests.app.boards.test_robustbench import LINF, contents
from tests.app.evidence.test_compare import POINTS, certificate
from tests.app.web.test_clean_board_pages import answers
from tests.flow.test_browser import CHROMIUM
from tests.flow.test_browser import browser as _browser_fixture
from tests.servers import served
from tests.specs import distillation_from, tiny_train_spec

browser = _browser_fixture
ROOT = Path(__file__).parents[2]
NUM_ENTRIES = len(ENTRIES)
# By the route that answers: addresses of pages of it. The last four entries are the ones measured here: two networks
# under attack, then a teacher and its student on clean images.
PAGES: dict[str, list[str]] = {
    "/": ["/"],
    "/api": ["/api"],
    "/audit": ["/audit"],
    "/compare": [
        "/compare?entries=1&entries=2",
        f"/compare?entries={NUM_ENTRIES + 1}&entries={NUM_ENTRIES + 2}",
        f"/compare?entries={NUM_ENTRIES + 3}&entries={NUM_ENTRIES + 4}",
    ],
    "/compare/points": [
        f"/compare/points?entries={NUM_ENTRIES + 1}&entries={NUM_ENTRIES + 2}",
        f"/compare/points?entries={NUM_ENTRIES + 3}&entries={NUM_ENTRIES + 4}",
    ],
    "/docs/": ["/docs/", "/docs/settings.html", "/docs/search.html?q=folder", "/docs/decisions/index.html"],
    "/entries/{entry_id}": ["/entries/1", f"/entries/{NUM_ENTRIES + 1}", f"/entries/{NUM_ENTRIES + 4}"],
    "/entries/{entry_id}/points": [f"/entries/{NUM_ENTRIES + 1}/points"],
    "/flags": ["/flags"],
    "/jobs": ["/jobs", "/jobs?state=failed", "/jobs?state=nonsense"],
    "/jobs/{job_id}": ["/jobs/1", "/jobs/2", "/jobs/5", "/jobs/6", "/jobs/7", "/jobs/999"],
    "/leaderboards/{dataset}/{name}": [
        "/leaderboards/cifar10/Linf",
        "/leaderboards/cifar10/Linf?q=nothing+like+that",
        "/leaderboards/digits/Linf",
        "/leaderboards/digits/clean",
    ],
    "/leaderboards/{dataset}/{name}/points": [
        "/leaderboards/digits/Linf/points",
        "/leaderboards/digits/Linf/points?order=easiest",
        "/leaderboards/cifar10/Linf/points",
        "/leaderboards/digits/clean/points",
    ],
    "/login": ["/login"],
    "/me": ["/me"],
    "/models/{model_id}": ["/models/1", "/models/4"],
    "/submit": ["/submit"],
    "/submit/import": ["/submit/import"],
    "/submit/{kind}": ["/submit/train", "/submit/evaluate", "/submit/distill", "/submit/distill?teacher.job=1"],
    "/workers": ["/workers"],
}
# Of a service without anything in it, and without built documentation.
EMPTY_PAGES = ["/", "/jobs", "/workers", "/docs/", "/docs/settings.html"]
# Answers to a GET that are no pages, and addresses that lead to another one.
NO_PAGES = {
    "/docs",
    *("/openapi.json", "/healthz", "/readyz", "/metrics"),
    *("/entries/{entry_id}/badge.svg", "/entries/{entry_id}/card.md"),
}
WIDTHS, THEMES = (1440, 390), ("light", "dark")
# What a theme changes is colours; everything else was looked at in the other one.
_RULES_OF_COLOUR = ["color-contrast", "link-in-text-block"]
# The pages name what scrolls in the frame after a change of size; a slow machine draws it late.
_RUN_AXE = """async (rules) => {
  for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
  const found = await axe.run(document, { resultTypes: ["violations"], ...(rules && { runOnly: rules }) });
  return found.violations.flatMap((rule) => rule.nodes.map((node) =>
    `${rule.id} at ${node.target.join(" ")}: ${node.failureSummary.replace(/\\s+/g, " ")}`));
}"""
_UNMARKED_FOCUS = """() => {
  const style = getComputedStyle(document.activeElement);
  const isMarked = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0 || style.boxShadow !== "none";
  return document.activeElement === document.body || isMarked ? null : document.activeElement.outerHTML.slice(0, 120);
}"""

pytestmark = pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="needs Chromium on the PATH")


def page_routes() -> set[str]:
    return {
        route.path
        for route in iter_route_contexts(create_app().routes)
        if route.path is not None
        and not isinstance(route.original_route, Mount)
        and "GET" in (route.methods or ())
        and not route.path.startswith("/api/v1/")
    } - NO_PAGES


def test_every_page_is_among_those_looked_at() -> None:
    assert page_routes() == set(PAGES)


@pytest.fixture(scope="module")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of its pages, made as all of them are."""
    source, built = tmp_path_factory.mktemp("written"), tmp_path_factory.mktemp("built")
    (source / "decisions").mkdir()
    (source / "index.md").write_text("# Documentation\n\n## Reference\n\n- [Settings](settings.md)\n")
    (source / "decisions" / "index.md").write_text("# Decisions\n\nWith `code`:\n\n```sh\ngklbench up\n```\n")
    (source / "settings.md").write_text((ROOT / "docs" / "settings.md").read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "sphinx", "-q", "-c", ROOT / "docs", "-b", "html", source, built]
    subprocess.run(command, check=True, capture_output=True)
    return built


@pytest.fixture(scope="module")
def settings(
    sqlite_template: Path, broker_url: str, documentation: Path, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    data_dir = tmp_path_factory.mktemp("full")
    (data_dir / "test.sqlite3").write_bytes(sqlite_template.read_bytes())
    return Settings(
        data_dir=data_dir,
        database_url=f"sqlite:///{data_dir / 'test.sqlite3'}",
        broker_url=broker_url,
        docs_dir=str(documentation),
    )


@pytest.fixture(scope="module")
def full(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with a board of published entries, two networks whose points are known, and jobs."""
    database, store = Database(settings.effective_database_url), open_store(settings)
    robustbench.import_files(
        database,
        [(f"cifar10/Linf/{name}.json", contents(LINF | {"name": name} | changes)) for name, changes in ENTRIES.items()],
    )
    generator, folder = np.random.default_rng(1), tmp_path_factory.mktemp("certificates")
    for number, share in enumerate((0.6, 0.45)):
        stands = generator.random(POINTS) < share
        stored = store.put(certificate(folder / f"{number}", stands))
        weights = train(database, f"Network {number + 1}")
        measure(database, weights, robust=int(stands.sum()), certificate_sha256=stored.sha256)
    teacher = train(database, "Teacher")
    for name, weights in (("Teacher", teacher), ("Student", train(database, "Student", teacher=teacher))):
        right = generator.random(POINTS) < 0.9
        stored = store.put(answers(folder / name, right))
        measure_clean(database, weights, int(right.sum()), certificate_sha256=stored.sha256)
    robust_points.record_missing(database, store, set())
    with database.writing() as session:
        for name in ("Running", "Queued"):
            jobs.create(session, tiny_train_spec(name=name))
        # Of job 5, which it waits for.
        jobs.create(session, distillation_from(5))
        claim = jobs.claim(session, worker="worker", lease=timedelta(days=1))
        assert claim is not None
        job_log.append(session, claim.job_id, b"a line that is too long for a phone " * 20 + b"\n", max_bytes=10_000)
    database.close()
    with served(settings) as url:
        yield url


@pytest.fixture(scope="module")
def empty(settings: Settings, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data_dir = tmp_path_factory.mktemp("empty")
    (data_dir / "test.sqlite3").write_bytes(sqlite_template.read_bytes())
    changes = {"data_dir": data_dir, "docs_dir": str(data_dir / "none")}
    changes["database_url"] = f"sqlite:///{data_dir / 'test.sqlite3'}"
    with served(settings.model_copy(update=changes)) as url:
        yield url


@dataclass
class Findings:
    faults: list[str] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)

    def look_at(self, page: Page, url: str, path: str, *, is_alone: bool) -> None:
        """In each width and each theme. `is_alone`: no other page may have its title."""
        page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        page.emulate_media(color_scheme="light")
        page.goto(url + path)
        if path == "/api":
            _open_a_request(page)
        self._look_at_its_frame(page, path, is_alone=is_alone)
        page.evaluate(AXE_SCRIPT)
        for width in WIDTHS:
            for theme in THEMES:
                page.set_viewport_size({"width": width, "height": 900})
                page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
                if path == "/api":
                    expect(page.locator("html.dark-mode")).to_have_count(int(theme == "dark"))
                rules = _RULES_OF_COLOUR if theme == "dark" else None
                where = f"{path}, {width} px, {theme}"
                self.faults += [f"{where}: {text}" for text in page.evaluate(_RUN_AXE, rules)]
                shown = page.evaluate("document.documentElement.scrollWidth")
                if shown > width:
                    self.faults.append(f"{where}: {shown} px wide")

    def _look_at_its_frame(self, page: Page, path: str, *, is_alone: bool) -> None:
        if (count := page.locator("h1").count()) != 1:
            self.faults.append(f"{path}: {count} headings of level 1")
        title = page.title()
        if is_alone and self.titles.setdefault(title, path) != path:
            self.faults.append(f"{path}: has the title of {self.titles[title]}, {title!r}")
        for _ in range(4):
            page.keyboard.press("Tab")
            if unmarked := page.evaluate(_UNMARKED_FOCUS):
                self.faults.append(f"{path}: the focus cannot be seen on {unmarked}")


def _open_a_request(page: Page) -> None:
    """One of them, as a reader would."""
    page.locator("#operations-jobs-submit button.opblock-summary-control").click()
    expect(page.locator("#operations-jobs-submit .opblock-body pre").first).to_be_visible()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_axe_finds_nothing_on_any_page(browser: Browser, full: str, empty: str) -> None:
    page, findings = browser.new_page(), Findings()

    def note(message: ConsoleMessage) -> None:
        # What the policy forbids; not that a page of an error has its status.
        if message.type == "error" and not any(status in message.text for status in ("404", "422")):
            findings.faults.append(f"{page.url}: {message.text}")

    page.on("console", note)
    page.on("pageerror", lambda error: findings.faults.append(f"{page.url}: {error}"))
    # Swagger UI waits for the description, which the service makes at the first request.
    page.set_default_timeout(120_000)
    for addresses in PAGES.values():
        for path in addresses:
            findings.look_at(page, full, path, is_alone="?" not in path)
    for path in EMPTY_PAGES:
        findings.look_at(page, empty, path, is_alone=False)
    page.close()
    assert not findings.faults, "\n".join(findings.faults)
