"""Logging of every process of the service: text lines for people, or JSON lines for a collector.

Modules use `logging.getLogger`; structlog only renders their messages. Lines of a request have its `request_id`, those
of a run its `job_id` and `attempt`. No line contains a header, a body or a query string.
"""

from __future__ import annotations

import logging
import re
import time
from typing import Literal
from urllib.parse import quote

import structlog
from asgi_correlation_id import CorrelationIdMiddleware, correlation_id
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import EventDict, Processor, WrappedLogger

from app.core.paths import own_path

LogFormat = Literal["text", "json"]

_access = logging.getLogger("app.http.access")

# Extra fields that a line may have. Listed by name, since libraries add more than belongs in a log: Celery adds the
# arguments of its tasks.
_EXTRA = ("method", "path", "status", "milliseconds", "job_id")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUIET = re.compile(r"/(healthz|readyz|metrics)|/(static|swagger)/.*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def configure(log_format: LogFormat) -> None:
    """Log to standard error, at INFO and above. Each process calls this once, when it starts."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(log_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # Otherwise it logs two lines each time that /readyz checks the schema's version.
    logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)
    # Otherwise it logs each use of a connection.
    logging.getLogger("psycopg.pool").setLevel(logging.WARNING)


def formatter(log_format: LogFormat) -> logging.Formatter:
    added: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        structlog.stdlib.ExtraAdder(_EXTRA),
    ]
    rendered: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer() if log_format == "json" else _render_text,
    ]
    return structlog.stdlib.ProcessorFormatter(processors=rendered, foreign_pre_chain=added)


def _add_request_id(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    request_id = correlation_id.get()
    if request_id is not None:
        line["request_id"] = request_id
    return line


_render_fields = structlog.processors.LogfmtRenderer()


def _render_text(logger: WrappedLogger, name: str, line: EventDict) -> str:
    exception = line.pop("exception", None)
    head = f"{line.pop('timestamp')} {line.pop('level').upper()} {line.pop('logger')}: "
    # Escape control characters, so that a client cannot forge lines of the log.
    message = _CONTROL.sub(lambda found: repr(found[0])[1:-1], str(line.pop("event")))
    fields = f" [{_render_fields(logger, name, line)}]" if line else ""
    return head + message + fields + (f"\n{exception}" if exception else "")


def is_quiet(path: str) -> bool:
    """Whether requests of this path are too frequent and too uninteresting for the log: health checks, static files."""
    return _QUIET.fullmatch(path) is not None


def with_request_id(app: ASGIApp) -> ASGIApp:
    """Give each request an id: its X-Request-ID header if that is valid, or a new one. The answer has it too."""
    return CorrelationIdMiddleware(app, validator=lambda given: _REQUEST_ID.fullmatch(given) is not None)


class AccessLog:
    """Logs a line for each request when it ends; for a stream, when its client has disconnected."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # If the application gives no answer, the server answers 500.
        status, started = 500, time.perf_counter()
        ended = started

        async def send_and_note(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            # Background tasks run after the last of these messages, and are not part of the request's time.
            ended = time.perf_counter()

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            method, path = scope["method"], quote(scope["path"])
            milliseconds = round(1000 * (ended - started), 1)
            level = logging.DEBUG if is_quiet(own_path(scope)) else logging.INFO
            fields = {"method": method, "path": path, "status": status, "milliseconds": milliseconds}
            _access.log(level, "%s %s %d", method, path, status, extra=fields)
