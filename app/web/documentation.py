"""The documentation under /docs/: the pages built by `make docs`; if there are none, how to build them.

Each request looks into the folder, so pages that are built while the service runs are served at once.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path, PurePosixPath

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.core.paths import root_of
from app.http.access import PUBLIC
from app.web.rendering import render

# The documentation's sources, if the service runs from a checkout.
_MARKDOWN = Path(__file__).parents[2] / "docs"
_HEADING = re.compile(r"## (.+)")
_ITEM = re.compile(r"- \[([^]]+)\]\(([\w/-]+\.md)\)")

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse, dependencies=[PUBLIC])


@router.get("/docs")
def former_api_page(request: Request) -> Response:
    """Redirect to the API's page, which was here. A temporary redirect, since browsers keep permanent ones."""
    return RedirectResponse(f"{root_of(request.scope)}/api", status_code=HTTPStatus.TEMPORARY_REDIRECT)


@router.get("/docs/")
async def index(request: Request) -> Response:
    files: BuiltPages = request.app.state.documentation
    if not files.are_built:
        return _how_to_make_them(request, files.folder, HTTPStatus.OK)
    return await files.get_response("index.html", request.scope)


class BuiltPages(StaticFiles):
    """The files of a folder, with ETags. Names that begin with a dot are Sphinx's own files and are not served."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder, html=True, check_dir=False)
        self.folder = folder
        # Otherwise it would refuse to serve while the folder does not exist.
        self.config_checked = True

    @property
    def are_built(self) -> bool:
        return (self.folder / "index.html").is_file()

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The answer with a file.

        Raises:
            HTTPException: there is no such file.
        """
        if not self.are_built and scope["method"] == "GET":
            request = Request(scope)
            # Also for addresses of pages that exist once they are built.
            return _markdown(path) or _how_to_make_them(request, self.folder, HTTPStatus.NOT_FOUND)
        if any(part.startswith(".") for part in Path(os.path.normpath(path)).parts if part != "."):
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return await super().get_response(path, scope)


@dataclass
class _Part:
    """A heading of the documentation's index and the pages that it lists: title and path of each."""

    title: str
    pages: list[tuple[str, str]] = field(default_factory=list)


def _how_to_make_them(request: Request, folder: Path, status: int) -> Response:
    return render(request, "documentation.html", status_code=status, parts=_contents(), folder=folder)


def _contents() -> list[_Part]:
    """The parts of the index; empty without a checkout."""
    index = _MARKDOWN / "index.md"
    parts: list[_Part] = []
    if index.is_file():
        for line in index.read_text(encoding="utf-8").splitlines():
            if heading := _HEADING.match(line):
                parts.append(_Part(heading[1]))
            elif parts and (item := _ITEM.match(line)):
                parts[-1].pages.append((item[1], item[2]))
    return parts


def _markdown(path: str) -> Response | None:
    """The source of a page, if there is a checkout."""
    if not re.fullmatch(r"([\w-]+/)*[\w-]+\.md", str(PurePosixPath(path))) or not (_MARKDOWN / path).is_file():
        return None
    # As plain text, since browsers download other types.
    return FileResponse(_MARKDOWN / path, media_type="text/plain", headers={"Cache-Control": "no-cache"})
