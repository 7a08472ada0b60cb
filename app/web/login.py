"""Logging a browser in with a token, and out."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from app.accounts import tokens
from app.accounts.principals import Principal
from app.core.paths import root_of
from app.http.access import COOKIE, PUBLIC, identified
from app.http.service import Service, ServiceDep
from app.web.forms import sent_fields
from app.web.rendering import redirect, render

_log = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse, dependencies=[PUBLIC])

_Next = Annotated[str, Query(max_length=2000)]


@router.get("/login")
def login_page(request: Request, service: ServiceDep, next: _Next = "/") -> Response:  # noqa: A002 - as addresses call it
    return _page(request, service, next)


@router.post("/login")
async def log_in(request: Request, service: ServiceDep) -> Response:
    sent = await sent_fields(request)
    secret, wanted = sent.get("token", "").strip(), sent.get("next", "")
    return await run_in_threadpool(_log_in, request, service, secret, wanted)


def _log_in(request: Request, service: Service, secret: str, wanted: str) -> Response:
    with service.database.reading() as session:
        is_known = tokens.find(session, secret) is not None
    known = None
    if is_known:
        with service.database.writing() as session:
            token = tokens.find(session, secret)
            if token is not None:
                # The new login replaces the one that this browser has.
                tokens.log_out(session, request.cookies.get(COOKIE, ""))
                known = tokens.log_in(session, token, timedelta(hours=service.settings.login_hours))
    if known is None:
        _log.warning("a login was refused: the token is not valid")
        return _page(request, service, wanted, problem="This token is unknown, expired or revoked.", status_code=401)
    value, until = known
    response = RedirectResponse(_here(root_of(request.scope), wanted), status_code=303)
    response.set_cookie(
        COOKIE,
        value,
        expires=until,
        path=_cookie_path(request),
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/logout")
def log_out(request: Request, service: ServiceDep, _: Annotated[Principal, Depends(identified)]) -> Response:
    cookie = request.cookies.get(COOKIE)
    if cookie:
        with service.database.writing() as session:
            tokens.log_out(session, cookie)
    response = redirect(request, "/")
    response.delete_cookie(COOKIE, path=_cookie_path(request), httponly=True, samesite="lax")
    return response


def _page(
    request: Request, service: Service, wanted: str, *, problem: str | None = None, status_code: int = 200
) -> Response:
    hours = f"{service.settings.login_hours:g} hours"
    return render(
        request,
        "login.html",
        status_code=status_code,
        next=_here(root_of(request.scope), wanted),
        problem=problem,
        hours=hours,
    )


def _cookie_path(request: Request) -> str:
    # Other services may share the host, so limit the cookie to this one's path.
    return root_of(request.scope) or "/"


def _here(root: str, wanted: str) -> str:
    """The address to continue at, limited to pages of this service, since the parameter may come from another site.

    >>> _here("", "/jobs?state=failed"), _here("", "//elsewhere.example"), _here("", "https://elsewhere.example")
    ('/jobs?state=failed', '/', '/')
    >>> _here("/bench", "/bench/jobs"), _here("/bench", "/other")
    ('/bench/jobs', '/bench/')
    """
    is_here = wanted.startswith(f"{root}/") and not wanted.startswith("//")
    return wanted if is_here and "\\" not in wanted and wanted.isprintable() else f"{root}/"
