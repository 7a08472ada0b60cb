"""The one format of API errors: problem+json (RFC 9457)."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from http import HTTPStatus
from itertools import groupby
from typing import Annotated, Any

from asgi_correlation_id import correlation_id
from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import Field, TypeAdapter
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import ServiceError
from app.core.formatting import as_sentence
from app.core.paths import own_path, root_of
from app.http.head_requests import methods_at
from gkl.answers import FieldProblem, Problem
from gkl.errors import NoSpaceLeft
from gkl.field_errors import field_errors

_log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"


def problem_response(
    status: int,
    code: str,
    detail: str,
    *,
    errors: list[FieldProblem] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    body = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        errors=errors or [],
        request_id=correlation_id.get(),
    )
    return JSONResponse(jsonable_encoder(body), status_code=status, headers=headers, media_type=PROBLEM_JSON)


# For the OpenAPI document: the errors that any route can answer with.
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "content": {PROBLEM_JSON: {}}, "description": "The request is at fault."},
    "5XX": {"model": Problem, "content": {PROBLEM_JSON: {}}, "description": "The service is at fault."},
}


_TOO_DEEP = "The body has brackets within brackets, too many levels deep to be read; no request needs so many."

RenderPage = Callable[[Request, int, str, dict[str, str]], Awaitable[Response]]
"""Makes the HTML page of an error from request, status, detail, headers."""


def _responder(render_page: RenderPage) -> Callable[..., Awaitable[Response]]:
    async def respond(request: Request, status: int, code: str, detail: str, **more: Any) -> Response:
        if not own_path(request.scope).startswith("/api/") and "text/html" in request.headers.get("accept", ""):
            return await render_page(request, status, detail, more.get("headers") or {})
        return problem_response(status, code, detail, **more)

    return respond


def no_answer(render_page: RenderPage) -> Callable[[Request], Awaitable[Response]]:
    """Makes the 503 answer for an application that does not answer in time."""
    respond = _responder(render_page)
    detail = (
        "A part of the service does not answer at the moment; try again in a few seconds. What was asked for may yet "
        "be done: send a job again with the same Idempotency-Key."
    )
    status = HTTPStatus.SERVICE_UNAVAILABLE
    return lambda request: respond(request, status, "no_answer", detail, headers={"Retry-After": "5"})


def install_error_handlers(app: FastAPI, render_page: RenderPage) -> None:
    respond = _responder(render_page)

    # All of them are async: they must answer even when no thread is free.
    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> Response:
        return await respond(request, error.status, error.code, as_sentence(str(error)), headers=error.headers)

    @app.exception_handler(NoSpaceLeft)
    async def no_space_left(request: Request, error: NoSpaceLeft) -> Response:
        return await respond(request, HTTPStatus.INSUFFICIENT_STORAGE, "no_room", as_sentence(str(error)))

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        problems = _request_problems(request, error.errors())
        detail = " ".join(f"{p.location}: {p.message}" for p in problems[:3])
        if len(problems) > 3:
            detail += f" And {len(problems) - 3} more, listed under 'errors'."
        return await respond(request, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_input", detail, errors=problems)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, RecursionError):
            return await respond(request, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_input", _TOO_DEEP)
        phrase = HTTPStatus(error.status_code).phrase
        detail = error.detail if error.detail != phrase else _plain_sentence(request, error.status_code)
        code = phrase.lower().replace(" ", "_")
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            # The router names only the methods of the first route with this path.
            error.headers = {"Allow": ", ".join(_methods_at(request))}
        return await respond(request, error.status_code, code, detail, headers=dict(error.headers or {}))

    @app.exception_handler(OperationalError)
    @app.exception_handler(InterfaceError)
    @app.exception_handler(PoolTimeout)
    async def database_away(request: Request, error: SQLAlchemyError) -> Response:
        _log.warning("%s %s: the database cannot be used (%s)", request.method, request.url.path, error)
        return await respond(
            request,
            HTTPStatus.SERVICE_UNAVAILABLE,
            "database_away",
            "The database cannot be used at the moment; try again in a few seconds.",
            headers={"Retry-After": "5"},
        )

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return await respond(
            request,
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "internal",
            f"The service failed to answer; its log has the cause under request {correlation_id.get()}. Try again, "
            "and if it fails again, tell its owner that number.",
        )


def _request_problems(request: Request, errors: Sequence[Any]) -> list[FieldProblem]:
    """The field problems of a request. Locations begin with the part of the request: 'body.epochs', 'query.state'."""
    problems = []
    for part, group in groupby(errors, key=lambda raw: raw["loc"][0]):
        validated = _body_type(request) if part == "body" else None
        inside = [{**raw, "loc": raw["loc"][1:], "msg": _told(raw)} for raw in group]
        problems += [
            FieldProblem(location=".".join(map(str, (part, *path))), message=message)
            for path, message in field_errors(inside, validated)
        ]
    return problems


def _told(raw: Any) -> str:
    if raw["type"] == "json_invalid":
        return f"the body is not JSON ({raw.get('ctx', {}).get('error', raw['msg'])})"
    return str(raw["msg"])


def _body_type(request: Request) -> TypeAdapter[Any] | None:
    """The type of the route's body; None if it has none."""
    field = getattr(request.scope.get("route"), "body_field", None)
    return None if field is None else _adapter(field.field_info.annotation, field.field_info.discriminator)


@lru_cache
def _adapter(annotation: Any, discriminator: str | None) -> TypeAdapter[Any]:
    tagged: Any = annotation if discriminator is None else Annotated[annotation, Field(discriminator=discriminator)]
    return TypeAdapter(tagged)


def _methods_at(request: Request) -> list[str]:
    methods = methods_at(request.app.routes, own_path(request.scope))
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def _plain_sentence(request: Request, status: int) -> str:
    if status == HTTPStatus.NOT_FOUND:
        return f"There is nothing at {request.url.path}; {root_of(request.scope)}/api lists all addresses."
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{request.method} is not allowed at {request.url.path}; {root_of(request.scope)}/api lists what is."
    return HTTPStatus(status).description or HTTPStatus(status).phrase


class TooLargeAsProblem:
    """Turns the body limiter's plain-text answer into problem+json."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_upload_bytes: int, uploads: re.Pattern[str]) -> None:
        """`uploads`: the paths to which files are sent."""
        self.app = app
        self.max_body_bytes, self.max_upload_bytes, self.uploads = max_body_bytes, max_upload_bytes, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        replaced = False

        async def send_problem(message: Message) -> None:
            nonlocal replaced
            is_plain = message.get("status") == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and not any(
                value.startswith(PROBLEM_JSON.encode()) for _, value in message.get("headers", ())
            )
            if message["type"] == "http.response.start" and is_plain:
                replaced = True
                is_upload = self.uploads.fullmatch(own_path(scope)) is not None
                limit = self.max_upload_bytes if is_upload else self.max_body_bytes
                detail = f"The body is larger than the {limit} bytes that this service accepts here."
                answer = problem_response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "content_too_large", detail)
                await answer(scope, receive, send)
            elif not replaced:
                await send(message)

        await self.app(scope, receive, send_problem)
