"""An answer within seconds, whatever a request waits for."""

from __future__ import annotations

import asyncio
import logging
import re
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems import problem_response

_log = logging.getLogger(__name__)

_ANSWER_SECONDS = 9.0
# The last piece of a file is answered when the file was read once more and is in the store.
_UPLOAD_SECONDS = 600.0
_MOST_LATE = 60
_ALWAYS = ("/healthz", "/readyz")


class AnswerInTime:
    """Answers 503 for a request that nothing is missing of, and that was not answered for some seconds.

    Each wait for another part has an end of its own, in which the thread that waits is free again. This is for what
    has none: a disk or a name server that hangs, and the wait for a thread. The work itself cannot be called back; it
    goes on, unheard. Where much of it does, new requests are refused at once: they would only wait too.
    """

    def __init__(self, app: ASGIApp, uploads: re.Pattern[str], seconds: float = _ANSWER_SECONDS) -> None:
        """`uploads`: the paths that take files."""
        self.app, self.uploads, self.seconds = app, uploads, seconds
        self._late: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _ALWAYS:
            await self.app(scope, receive, send)
            return
        if len(self._late) >= _MOST_LATE:
            await _refuse(scope, receive, send)
            return
        seconds = _UPLOAD_SECONDS if self.uploads.fullmatch(scope["path"]) else self.seconds
        limit = asyncio.timeout(seconds)
        is_whole = has_begun = False

        async def receive_and_note() -> Message:
            nonlocal is_whole
            if limit.expired():
                return {"type": "http.disconnect"}
            if not is_whole:
                # While the body comes, another limit watches its sender.
                _let_run(limit, None)
            message = await receive()
            is_whole = is_whole or message["type"] != "http.request" or not message.get("more_body", False)
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
            await _refuse(scope, receive, send)
        except asyncio.CancelledError:
            work.cancel()
            raise

    def _end(self, work: asyncio.Task[None]) -> None:
        self._late.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            _log.warning("a request that was given up failed (%s: %s)", type(error).__name__, error)


def _let_run(limit: asyncio.Timeout, seconds: float | None) -> None:
    if not limit.expired():
        limit.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    answer = problem_response(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "no_answer",
        "A part of the service does not answer at the moment; try again in a few seconds. What was asked for may yet "
        "be done: send a job again with the same Idempotency-Key.",
        headers={"Retry-After": "5"},
    )
    await answer(scope, receive, send)
