"""Security headers of every answer, and a time limit for request bodies."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.paths import own_path

# Only this service's own files: no inline script or style, no frame, no plugin, nothing from another site.
# Images may be data URLs: Swagger UI's style sheet has some.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_PATIENCE, _LEAST_BYTES_PER_SECOND = 4, 10_000
_YEAR_SECONDS = 365 * 24 * 3600


class SecurityHeaders:
    """Adds security headers to every answer, also to errors."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if own_path(scope).startswith("/api/"):
                    # Another user may not read the same answer, so shared caches must not store it.
                    headers.setdefault("Cache-Control", "private, no-cache")
                if scope["scheme"] == "https":
                    headers.setdefault("Strict-Transport-Security", f"max-age={_YEAR_SECONDS}")
            await send(message)

        await self.app(scope, receive, send_with_headers)


class BodyTimeout:
    """Ends a request whose body stalls, which would otherwise hold a connection and memory for ever."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_whole, received_bytes, begun = False, 0, time.monotonic()

        async def receive_in_time() -> Message:
            nonlocal is_whole, received_bytes
            if is_whole:
                # After the body only a disconnect can come, and an event stream waits for that without a limit.
                return await receive()
            # So that a client cannot hold a connection for ever with a byte now and then.
            until = begun + _PATIENCE * self.seconds + received_bytes / _LEAST_BYTES_PER_SECOND
            try:
                message = await asyncio.wait_for(receive(), min(self.seconds, max(0, until - time.monotonic())))
            except TimeoutError:
                # Raised within the handler that reads the body, so that the answer has the usual error format.
                raise HTTPException(
                    HTTPStatus.REQUEST_TIMEOUT,
                    f"The request's body stalled for {self.seconds:g} seconds, or came too slowly; send it again.",
                    headers={"Connection": "close"},
                ) from None
            received_bytes += len(message.get("body", b""))
            is_whole = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        await self.app(scope, receive_in_time, send)
