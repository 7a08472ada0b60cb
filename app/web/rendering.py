"""Rendering of templates, with their filters and globals."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from fastapi import BackgroundTasks, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from pydantic import BeforeValidator
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app import jobs
from app.accounts.principals import Principal
from app.core import formatting
from app.core.errors import Unprocessable
from app.core.formatting import plain
from app.core.paths import own_path, root_of
from app.http.access import CSRF_FIELD
from app.web.boards import PROVENANCES, own_name
from app.web.forms import sent_fields
from app.web.rich_text import rich
from gkl.answers import JobState, Scope
from gkl.catalog import ARCHITECTURES, DATASETS, LOSS_TITLES
from gkl.outcome.metrics import in_order, written
from gkl.spec import format_epsilon

# Without JavaScript, a form sends an empty text for each field without a choice.
Chosen = BeforeValidator(lambda value: value or None)


def _visible(value: Any) -> Any:
    if isinstance(value, Markup):
        return Markup(formatting.visible(value))
    return formatting.visible(value) if isinstance(value, str) else value


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("app.web"),
        autoescape=select_autoescape(),
        # A misspelled name in a template must raise an error, not render as an empty cell.
        undefined=StrictUndefined,
        # For every value: characters in user-chosen names must not reverse the text next to them.
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        about=formatting.about,
        as_sentence=formatting.as_sentence,
        duration=formatting.duration,
        percent=formatting.percent,
        points=formatting.points,
        sentence=formatting.as_sentence,
        interval=formatting.interval,
        millions=formatting.millions,
        size=formatting.size,
        when=formatting.when,
        when_exactly=formatting.when_exactly,
        epsilon=format_epsilon,
        rich=rich,
        written=written,
        plain=plain,
        pretty_json=lambda value: json.dumps(value, indent=2),
    )
    environment.globals.update(
        datasets=DATASETS,
        architectures=ARCHITECTURES,
        loss_titles=LOSS_TITLES,
        provenances=PROVENANCES,
        own_name=own_name,
        metrics_in_order=in_order,
        JobState=JobState,
        Scope=Scope,
        csrf_field=CSRF_FIELD,
        progress_of=jobs.progress,
    )
    return environment


_templates = Jinja2Templates(env=_environment())


def render(
    request: Request, template: str, *, status_code: int = 200, headers: dict[str, str] | None = None, **context: Any
) -> HTMLResponse:
    # None if an error came before authentication.
    principal: Principal | None = getattr(request.state, "principal", None)
    context |= {
        "principal": principal,
        "csrf": principal.csrf if principal is not None else None,
        "root": root_of(request.scope),
    }
    # Pages may depend on who is logged in.
    headers = {"Cache-Control": "private, no-cache", "Vary": "Cookie"} | (headers or {})
    return _templates.TemplateResponse(request, template, context, status_code=status_code, headers=headers)


def redirect(request: Request, path: str, background: BackgroundTasks | None = None) -> RedirectResponse:
    """Redirect to another page of the service."""
    return RedirectResponse(root_of(request.scope) + path, status_code=HTTPStatus.SEE_OTHER, background=background)


async def error_page(request: Request, status: int, detail: str, headers: dict[str, str]) -> Response:
    """The page of an error, with a link to log in if needed, and with the values that were typed into a form."""
    query = f"?{request.url.query}" if request.url.query else ""
    if status == HTTPStatus.UNAUTHORIZED and request.method == "GET":
        return redirect(request, f"/login?{urlencode({'next': request.url.path + query})}")
    kept = await _typed(request) if status in _SENT_AGAIN and not _is_of_another_site(request, status) else {}
    return render(
        request,
        "error.html",
        status_code=status,
        status=status,
        detail=detail,
        headers=headers,
        kept=kept,
        phrase=HTTPStatus(status).phrase.lower(),
        is_get=request.method in ("GET", "HEAD"),
        path=request.url.path,
        to=request.url.path + query,
    )


# The statuses after which a form may be sent again. After others it would fail again, or its body was not read fully.
_SENT_AGAIN = (401, 403, 422, 429, 503)


def _is_of_another_site(request: Request, status: int) -> bool:
    """Whether another site's page made the request. Its form must not be shown as a form of this service."""
    return status == HTTPStatus.FORBIDDEN and getattr(request.state, "principal", None) is None


async def _typed(request: Request) -> dict[str, str]:
    """The values of a form that may be sent again; never a token."""
    is_form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    if request.method != "POST" or not is_form or own_path(request.scope) in ("/login", "/logout"):
        return {}
    try:
        sent = await sent_fields(request)
    except (Unprocessable, HTTPException, ClientDisconnect):
        return {}
    return {name: value for name, value in sent.items() if name != CSRF_FIELD}
