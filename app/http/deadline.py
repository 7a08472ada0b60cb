"""A deadline for answers: a request that waits too long gets 503."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.paths import own_path

_log = logging.getLogger(__name__)

_ANSWER_SECONDS = 9.0
# A request with a file is answered only after the file was checked and transferred to or from the store.
_FILE_SECONDS = 600.0
_MOST_LATE = 60
_ALWAYS = ("/healthz", "/readyz")


class AnswerInTime:
    """Answers 503 if a complete request was not answered within some seconds.

    Waits for the database, broker and store have timeouts of their own, after which their threads are free again. This
    deadline is for waits without one: a disk or a name server that hangs, or no free thread. The work itself cannot be
    cancelled and continues; its result is dropped. If much such work is pending, new requests are refused at once.
    """

    def __init__(
        self,
        app: ASGIApp,
        files: re.Pattern[str],
        refusal: Callable[[Request], Awaitable[Response]],
        seconds: float | None = None,
    ) -> None:
        """
        Args:
            app: the application.
            files: the paths of requests that send or fetch large files.
            refusal: makes the 503 answer.
            seconds: how long to wait for the application's answer; by default nine.
        """
        self.app, self.files, self.refusal = app, files, refusal
        self.seconds = _ANSWER_SECONDS if seconds is None else seconds
        self._late: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or own_path(scope) in _ALWAYS:
            await self.app(scope, receive, send)
            return
        if len(self._late) >= _MOST_LATE:
            await self._refuse(scope, [], send)
            return
        seconds = _FILE_SECONDS if self.files.fullmatch(own_path(scope)) else self.seconds
        limit = asyncio.timeout(seconds)
        is_whole = has_begun = False
        is_form = _is_form(scope)
        form: list[Message] = []

        async def receive_and_note() -> Message:
            nonlocal is_whole
            if limit.expired():
                return {"type": "http.disconnect"}
            if not is_whole:
                # While the body arrives, `BodyTimeout` applies instead.
                _let_run(limit, None)
            message = await receive()
            is_whole = is_whole or message["type"] != "http.request" or not message.get("more_body", False)
            if is_form:
                form.append(message)
            if not has_begun:
                _let_run(limit, seconds)
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            if limit.expired():
                return
            has_begun = True
            _let_run(limit, None)
            await send(message)

        work = asyncio.ensure_future(self.app(scope, receive_and_note, send_and_note))
        try:
            async with limit:
                await asyncio.shield(work)
        except TimeoutError:
            if not limit.expired():
                raise
            _log.warning("%s %s: no answer within %g seconds", scope["method"], scope["path"], seconds)
            self._late.add(work)
            work.add_done_callback(self._end)
            await self._refuse(scope, form, send)
        except asyncio.CancelledError:
            work.cancel()
            raise

    async def _refuse(self, scope: Scope, form: list[Message], send: Send) -> None:
        """Answer 503 without waiting; the page contains the form's values if they have arrived."""
        come = iter(form)

        async def receive() -> Message:
            return next(come, {"type": "http.disconnect"})

        answer = await self.refusal(Request(scope, receive))
        await answer(scope, receive, send)

    def _end(self, work: asyncio.Task[None]) -> None:
        self._late.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            _log.warning("a request failed after its deadline (%s: %s)", type(error).__name__, error)


def _is_form(scope: Scope) -> bool:
    kind = Headers(scope=scope).get("content-type", "")
    return kind.startswith("application/x-www-form-urlencoded") and not own_path(scope).startswith("/api/")


def _let_run(limit: asyncio.Timeout, seconds: float | None) -> None:
    if not limit.expired():
        limit.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)
