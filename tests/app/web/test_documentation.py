"""The documentation under /docs/: built pages as files, and what is said where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.core.settings import Settings
from app.http.security_headers import CONTENT_SECURITY_POLICY
from tests.databases import either_database
from tests.local import serving

pytestmark = either_database
HTML = {"Accept": "text/html"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "built pages"


@pytest.fixture
def reader(settings: Settings, folder: Path) -> Iterator[TestClient]:
    """Of a service that looks for pages in that folder, which is not there yet."""
    with serving(settings.model_copy(update={"docs_dir": str(folder)})) as client:
        yield client


def build(folder: Path) -> None:
    (folder / "decisions").mkdir(parents=True)
    (folder / ".doctrees").mkdir()
    (folder / ".doctrees" / "index.doctree").write_text("Sphinx's own")
    (folder / ".buildinfo").write_text("Sphinx's own")
    (folder / "index.html").write_text("<h1>Built</h1>")
    (folder / "decisions" / "index.html").write_text("<h1>Reasons</h1>")


def test_built_pages_are_served_as_soon_as_they_are_there(reader: TestClient, folder: Path) -> None:
    assert "make docs" in reader.get("/docs/", headers=HTML).text
    build(folder)
    assert reader.get("/docs/").text == "<h1>Built</h1>"
    assert reader.get("/docs/index.html").text == "<h1>Built</h1>"
    assert reader.get("/docs/decisions/").text == "<h1>Reasons</h1>"
    assert reader.get("/docs/decisions").url.path == "/docs/decisions/"


def test_they_are_cached_and_guarded_as_other_files(reader: TestClient, folder: Path) -> None:
    build(folder)
    for path in ("/docs/", "/docs/decisions/"):
        answer = reader.get(path)
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert reader.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
        head = reader.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["etag"] == answer.headers["etag"]


@pytest.mark.parametrize(
    "path",
    ["/docs/.buildinfo", "/docs/.doctrees/index.doctree", "/docs/decisions/../.buildinfo", "/docs/%2e%2e/secret.html"],
)
def test_nothing_else_of_the_folder_is(reader: TestClient, folder: Path, path: str) -> None:
    build(folder)
    (folder.parent / "secret.html").write_text("not to be read")
    assert reader.get(path).status_code == 404


def test_a_page_that_is_not_there_is_said(reader: TestClient, folder: Path) -> None:
    build(folder)
    missing = reader.get("/docs/nothing.html", headers=HTML)
    assert missing.status_code == 404
    assert 'href="/docs/"' in missing.text


def test_without_pages_the_markdown_can_be_read(reader: TestClient) -> None:
    page = reader.get("/docs/", headers=HTML)
    assert page.status_code == 200
    assert 'href="/docs/settings.md"' in page.text
    written = reader.get("/docs/settings.md")
    assert written.headers["content-type"] == "text/plain; charset=utf-8"
    assert written.text.startswith("# Settings")
    assert reader.get("/docs/decisions/index.md").text.startswith("# ")
    for path in ("/docs/settings.html", "/docs/conf.py", "/docs/nothing.md", "/docs/%2e%2e/README.md"):
        answer = reader.get(path, headers=HTML)
        assert (answer.status_code, "make docs" in answer.text) == (404, True), path


def test_the_api_page_is_found_where_it_was(reader: TestClient) -> None:
    moved = reader.get("/docs", follow_redirects=False)
    assert (moved.status_code, moved.headers["location"]) == (307, "/api")
    assert 'data-openapi="/openapi.json"' in reader.get("/docs").text


def test_it_is_read_without_a_token(settings: Settings, folder: Path) -> None:
    build(folder)
    changes = {"docs_dir": str(folder), "access": "tokens", "anonymous_read": False}
    with serving(settings.model_copy(update=changes)) as client:
        assert client.get("/docs/").text == "<h1>Built</h1>"
        assert client.get("/docs/decisions/").text == "<h1>Reasons</h1>"


def test_a_checkout_serves_what_make_docs_writes(settings: Settings) -> None:
    assert settings.effective_docs_dir == Path(__file__).parents[3] / "build" / "docs"
    assert Settings(docs_dir="somewhere").environment()["GKLBENCH_DOCS_DIR"] == str(Path("somewhere").resolve())
