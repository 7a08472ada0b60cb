"""Authentication and authorization: every route except a few public ones names the scope that it needs.

A program sends its token with each request. A browser logs in with a token once and gets a cookie; with it, forms and
scripts must also send a CSRF token. A service on loopback needs no tokens, as long as requests are addressed to
loopback.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import math
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from fastapi import Depends, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from app.accounts import tokens
from app.accounts.principals import Principal
from app.core.errors import Forbidden, Unauthorized
from app.core.paths import own_path, root_of
from app.db.database import DATABASE_AWAY
from app.db.tables import ANONYMOUS, Token
from app.http.service import Service, ServiceDep
from gkl.addresses import is_loopback
from gkl.answers import Scope

_log = logging.getLogger(__name__)

COOKIE = "gklbench_login"
CSRF_FIELD, CSRF_HEADER = "csrf", "X-CSRF-Token"
# Headers that a proxy adds to forwarded requests.
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
ROWS_OF_A_REQUEST = 100

_bearer = HTTPBearer(auto_error=False, description="A token of `gklbench token create`, where the service asks for it.")


async def identified(
    request: Request,
    service: ServiceDep,
    sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Principal:
    """The sender of a request, whatever their scope.

    Raises:
        Unauthorized: the token is not valid.
        Forbidden: the form is not from a page of this service, or a request from elsewhere reached an open service.
        TooMany: the limit of requests a minute is exceeded.
    """
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is None:
        principal = await run_in_threadpool(_identify, request, service, sent)
        request.state.principal = principal
        if principal.csrf is not None and sent is None and request.method not in SAFE_METHODS:
            await _check_csrf(request, principal.csrf)
    return principal


async def _allowed(
    request: Request, scopes: SecurityScopes, principal: Annotated[Principal, Depends(identified)]
) -> Principal:
    """The sender, if their scope allows the request.

    Raises:
        Unauthorized: the request has no token.
        Forbidden: its token does not allow this.
    """
    for needed in map(Scope, scopes.scopes):
        _check(principal, needed, login=f"{root_of(request.scope)}/login")
    return principal


def _check(principal: Principal, needed: Scope, *, login: str) -> None:
    if principal.may(needed):
        return
    if principal.is_known:
        raise Forbidden(f"this needs a token with the scope '{needed}', and {principal.name}'s has '{principal.scope}'")
    raise Unauthorized(
        f"this needs a token with the scope '{needed}': send it as 'Authorization: Bearer gklb_...', or log in at "
        f"{login}; the service's owner makes one with 'gklbench token create'"
    )


def _identify(request: Request, service: Service, sent: HTTPAuthorizationCredentials | None) -> Principal:
    address = request.client.host if request.client else "unknown"
    if service.settings.is_open:
        _check_is_local(request)
        return Principal(ANONYMOUS, Scope.ADMIN, tokens.Limits(None, None, None, None, None), is_open=True)
    cookie = request.cookies.get(COOKIE)
    anonymous = Principal(
        ANONYMOUS,
        Scope.READ if service.settings.anonymous_read else None,
        tokens.Limits(requests_per_minute=service.settings.anonymous_requests_per_minute),
        counted_as=_of_address(address),
    )
    token = None
    if sent is not None or cookie:
        with service.database.reading() as session:
            if sent is not None:
                token = tokens.find(session, sent.credentials)
            elif cookie:
                token = tokens.find_logged_in(session, cookie)
            is_to_be_noted = token is not None and tokens.is_use_to_be_noted(session, token)
    if token is None:
        _count(service, anonymous)
        if sent is not None:
            raise Unauthorized("this token is unknown, expired or revoked; ask the service's owner for another")
        return anonymous
    principal = _of_token(token, csrf=tokens.csrf_token(cookie) if sent is None and cookie else None)
    _count(service, principal)
    if is_to_be_noted:
        _note_use(service, token)
    return principal


def _of_token(token: Token, *, csrf: str | None) -> Principal:
    limits, counted_as = tokens.Limits.of(token), f"token {token.name}"
    return Principal(token.name, token.scope, limits, token_id=token.id, counted_as=counted_as, csrf=csrf)


def _of_address(address: str) -> str:
    """The address by which requests are counted: for IPv6 the /64 network, since one host may use all of it."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else address


def _count(service: Service, principal: Principal) -> None:
    if principal.limits.requests_per_minute is not None:
        service.rate_limiter.count(principal.counted_as, principal.limits.requests_per_minute)


def charge(service: Service, principal: Principal, *, rows: int) -> None:
    """Count an answer of many rows as several requests: one for each `ROWS_OF_A_REQUEST` rows, but at most half of a
    minute's limit, so that every answer remains possible.

    Raises:
        TooMany: the limit of requests a minute is exceeded.
    """
    allowed = principal.limits.requests_per_minute
    if allowed is None:
        return
    # The first was counted when the request came.
    more = min(math.ceil(rows / ROWS_OF_A_REQUEST) - 1, allowed // 2)
    if more > 0:
        service.rate_limiter.count(principal.counted_as, allowed, cost=more)


def _note_use(service: Service, token: Token) -> None:
    try:
        with service.database.writing() as session:
            tokens.note_use(session, token.id)
    except DATABASE_AWAY as error:
        _log.warning("the last use of a token could not be stored (%s)", error.orig)


def _check_is_local(request: Request) -> None:
    """Check that a request to an open service comes from this machine: not through a proxy, and not from a page whose
    host name was made to resolve to loopback (DNS rebinding).

    Raises:
        Forbidden: the request may come from elsewhere.
    """
    is_forwarded = any(name in request.headers for name in _FORWARDED)
    is_near = request.client is None or is_loopback(request.client.host)
    if is_forwarded or not is_near or not is_loopback(request.url.hostname or ""):
        raise Forbidden(
            "this service is open to its own machine only, at http://127.0.0.1 or http://localhost; to serve others "
            "set GKLBENCH_ACCESS=tokens and make tokens with 'gklbench token create'"
        )


async def _check_csrf(request: Request, expected: str) -> None:
    """Check the CSRF token: a browser sends the cookie also with requests that other sites' pages make.

    Raises:
        Forbidden: the request does not carry the token of this login.
    """
    given = request.headers.get(CSRF_HEADER, "")
    # Scripts send it in a header. A body is read for it only if a page's form sent it: an API upload may be too large.
    is_page = not own_path(request.scope).startswith("/api/")
    is_form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    if not given and is_page and is_form:
        try:
            fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=1000)
        except ValueError:
            fields = {}
        given = fields.get(CSRF_FIELD, [""])[0]
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise Forbidden(
            "the form does not belong to this login, which has changed since its page was loaded; send it from a newer "
            "page"
        )


def _site(address: str, scheme: str) -> tuple[str | None, int | None] | None:
    """Host and port, by default the scheme's port; None if it is not an address."""
    try:
        found = urlsplit(address)
        return found.hostname, found.port or {"https": 443, "http": 80}.get(found.scheme or scheme)
    except ValueError:
        return None


async def refuse_other_sites(request: Request, service: ServiceDep) -> None:
    """Refuse requests that pages of other sites make through a user's browser.

    Browsers state the origin of a request; a request without one is not from a browser and is accepted. So are API
    requests from the origins that the owner has allowed: they send a token and no cookie.

    Raises:
        Forbidden: the request comes from another site.
    """
    if request.method in SAFE_METHODS:
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    host = request.headers.get("host", "")
    if own_path(request.scope).startswith("/api/") and origin in service.settings.origins:
        return
    if site is not None:
        is_ours = site in ("same-origin", "none")
    else:
        scheme = urlsplit(origin).scheme if origin and _site(origin, "") else ""
        is_ours = origin is None or _site(origin, scheme) == _site(f"//{host}", scheme)
    if not is_ours:
        whose = f" (of {origin}, for {host})" if origin else ""
        raise Forbidden(
            f"this request came from a page of another site{whose} and was not carried out; if that is the same "
            "service behind a reverse proxy, the proxy must forward the Host header (nginx: proxy_set_header Host "
            "$http_host)"
        )


PUBLIC = Depends(identified)
"""For routes that need no scope."""

READS = Security(_allowed, scopes=[Scope.READ])
Reader = Annotated[Principal, READS]
Sender = Annotated[Principal, Security(_allowed, scopes=[Scope.SUBMIT])]
Admin = Annotated[Principal, Security(_allowed, scopes=[Scope.ADMIN])]
