"""Templates and what they may use."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from pydantic import BeforeValidator

import gkl
from app import entries, formatting, jobs
from app.tables import JobState
from app.web.boards import PROVENANCES
from app.web.rich_text import plain, rich
from gkl.catalog import ARCHITECTURES, DATASETS
from gkl.spec import format_epsilon

# A form without JavaScript sends an empty text for a choice that was not made.
Chosen = BeforeValidator(lambda value: value or None)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("app.web"),
        autoescape=select_autoescape(),
        # A name that a template misspells must not turn into an empty cell.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=formatting.duration,
        percent=formatting.percent,
        interval=formatting.interval,
        size=formatting.size,
        when=formatting.when,
        when_exactly=formatting.when_exactly,
        epsilon=format_epsilon,
        rich=rich,
        plain=plain,
        pretty_json=lambda value: json.dumps(value, indent=2),
    )
    environment.globals.update(
        datasets=DATASETS,
        architectures=ARCHITECTURES,
        loss_titles=entries.LOSS_TITLES,
        provenances=PROVENANCES,
        loss_parts=_LOSS_PARTS,
        JobState=JobState,
        progress_of=jobs.progress,
    )
    return environment


# How a page names the parts of a training's loss.
_LOSS_PARTS = {"natural": "CE, natural", "kl": "KL", "dkl": "DKL", "ce": "CE, soft", "wmse": "wMSE"}

_templates = Jinja2Templates(env=_environment())


def _build() -> str:
    """Another text whenever a page may look otherwise for the same rows."""
    digest = hashlib.sha256(gkl.__version__.encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.*")):
        if path.suffix in (".py", ".html", ".css", ".js"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


BUILD = _build()


def render(
    request: Request, template: str, *, status_code: int = 200, headers: dict[str, str] | None = None, **context: Any
) -> HTMLResponse:
    return _templates.TemplateResponse(request, template, context, status_code=status_code, headers=headers)


def error_page(request: Request, status: int, detail: str) -> Response:
    return render(request, "error.html", status_code=status, status=status, detail=detail)
