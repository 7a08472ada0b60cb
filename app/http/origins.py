"""CORS: pages of other origins that may call the API."""

from __future__ import annotations

from collections.abc import Collection

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.paths import own_path

_METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS")
_SENT = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "X-Request-ID"),
    *("Tus-Resumable", "Upload-Length", "Upload-Metadata", "Upload-Offset"),
)
_READ = (
    *(
        "Content-Disposition",
        "Content-Location",
        "ETag",
        "Link",
        "Location",
        "Repr-Digest",
        "Retry-After",
        "X-Log-Size",
        "X-Request-ID",
    ),
    *("Tus-Extension", "Tus-Max-Size", "Tus-Resumable", "Tus-Version"),
    *("Upload-Expires", "Upload-Length", "Upload-Offset"),
)


class ApiForOrigins:
    """Allows CORS for the API only; pages and their forms are for the service's own origin. Never allows cookies."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self.app = app
        self.shared = CORSMiddleware(
            app, allow_origins=origins, allow_methods=_METHODS, allow_headers=_SENT, expose_headers=_READ
        )
        self.is_shared = bool(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_api = self.is_shared and scope["type"] == "http" and own_path(scope).startswith("/api/")
        await (self.shared if is_api else self.app)(scope, receive, send)
