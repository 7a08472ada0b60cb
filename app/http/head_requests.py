"""HEAD for every GET route: the same headers without a body."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import anyio.lowlevel
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute, compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.paths import own_path


class HeadAsGet:
    """Answers HEAD like GET, and stops after the headers: an event stream would never end, and a file of weights would
    be read for nothing. Routes with a HEAD of their own answer themselves.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or _has_its_own(scope):
            await self.app(scope, receive, send)
            return
        # The server looks at its own copy of the scope to know that no body follows.
        asked = {**scope, "method": "GET"}
        with anyio.CancelScope() as cancelling:

            async def send_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    # For middleware outside of this one that measures requests.
                    scope.update(asked, method="HEAD")
                    await send(message)
                    await send({"type": "http.response.body", "body": b""})
                    cancelling.cancel()
                await anyio.lowlevel.checkpoint()

            await self.app(asked, receive, send_headers)


def _has_its_own(scope: Scope) -> bool:
    declared = methods_at(scope["app"].routes, own_path(scope))
    return "HEAD" in declared and "GET" not in declared


def methods_at(routes: Sequence[BaseRoute], path: str) -> set[str]:
    """The methods of all routes with this path."""
    methods: set[str] = set()
    for route in iter_route_contexts(routes):
        if route.path is not None and route.methods and compile_path(route.path)[0].match(path):
            methods |= route.methods
    return methods
