"""Calls to a server that may take connections and then say nothing.

A limit on the whole of a call would cut a large file that comes slowly. Here the limit is on silence: a call may go on
for hours while bytes come or go, and ends some seconds after the last of them.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

# A server that was silent is asked again after so long, by one call.
_PAUSE_SECONDS = 2.0
_TRIAL_SECONDS = 3.0
# Nothing heard for so long, with many waiting: it may hang, and some give up their threads for others.
_DOUBT_SECONDS = 1.5
_TICK_SECONDS = 0.25

_T = TypeVar("_T")


class Silent(OSError):
    """The server says nothing."""


class StillSilent(Silent):
    """It did not just before, to others: no news."""


class _Call:
    """One of the calls that are waited for."""

    def __init__(self, watch: Watch, patience_seconds: float) -> None:
        self.watch, self.patience_seconds = watch, patience_seconds
        self.silent_seconds = 0.0

    def hear(self) -> None:
        self.silent_seconds = 0.0
        self.watch.hear()


_current: ContextVar[_Call | None] = ContextVar("_current", default=None)


def sign_of_life() -> None:
    """Bytes have come or gone, in the call that this is part of."""
    call = _current.get()
    if call is not None:
        call.hear()


def be_patient(seconds: float) -> None:
    """From here on the server may be silent for so long, while it works on this call."""
    call = _current.get()
    if call is not None:
        call.patience_seconds = max(call.patience_seconds, seconds)


class Watch:
    """Over all calls of this process to one server.

    Once a call has waited in vain, all end, and new ones are refused at once; after a pause one of them tries whether
    the server is back. So a server that hangs holds one thread, and not all of them.
    """

    def __init__(self, patience_seconds: float, *, most_in_doubt: int | None = None) -> None:
        """
        Args:
            patience_seconds: how long a call waits for a sign of life.
            most_in_doubt: how many may wait once nothing was heard for a moment; those that came later end.
        """
        self.patience_seconds, self.most_in_doubt = patience_seconds, most_in_doubt
        self._lock = threading.Lock()
        self._waiting: dict[_Call, None] = {}
        """Those that wait, the longest first."""
        self._lively_at = 0.0
        """When something was heard, or asked of a server of which nobody wanted anything."""
        self._is_silent, self._try_at = False, 0.0
        self._trial: _Call | None = None
        """The one call that asks whether a server that was silent is back."""

    def hear(self) -> None:
        with self._lock:
            self._lively_at, self._is_silent = time.monotonic(), False

    async def over(self, work: Coroutine[Any, Any, _T], patience_seconds: float | None = None) -> _T:
        """Await a call for as long as it shows signs of life.

        Raises:
            Silent: there was none for too long, or for others a moment ago.
        """
        call = _Call(self, patience_seconds or self.patience_seconds)
        try:
            self._begin(call, may_try=True)
        except Silent:
            work.close()
            raise
        try:
            return await self._await(call, work)
        finally:
            self._end(call)

    @contextmanager
    def turn(self, lock: threading.Lock) -> Iterator[None]:
        """Hold a lock that others hold during calls.

        Raises:
            Silent: the server is, while another waits for it.
        """
        if not lock.acquire(blocking=False):
            waiting = _Call(self, math.inf)
            self._begin(waiting, may_try=False)
            try:
                while not lock.acquire(timeout=_TICK_SECONDS):
                    self._check(waiting)
            finally:
                self._end(waiting)
        try:
            yield
        finally:
            lock.release()

    async def _await(self, call: _Call, work: Coroutine[Any, Any, _T]) -> _T:
        token = _current.set(call)
        try:
            # What it begins inherits the variable.
            task = asyncio.ensure_future(work)
        finally:
            _current.reset(token)
        try:
            ticked_at = time.monotonic()
            while not (await asyncio.wait({task}, timeout=_TICK_SECONDS))[0]:
                now = time.monotonic()
                # While this process itself was held up, it heard nothing because it did not listen.
                call.silent_seconds += min(now - ticked_at, 2 * _TICK_SECONDS)
                ticked_at = now
                self._check(call)
        except BaseException:
            task.cancel()
            task.add_done_callback(_look_away)
            raise
        # A refusal is an answer too.
        self.hear()
        return task.result()

    def _begin(self, call: _Call, *, may_try: bool) -> None:
        with self._lock:
            now = time.monotonic()
            if self._is_silent:
                if self._trial is not None or not may_try or now < self._try_at:
                    raise StillSilent("no sign of life a moment ago")
                self._trial = call
                call.patience_seconds = min(call.patience_seconds, _TRIAL_SECONDS)
            else:
                if not self._waiting:
                    self._lively_at = now
                self._check_room(now, len(self._waiting))
            self._waiting[call] = None

    def _end(self, call: _Call) -> None:
        with self._lock:
            del self._waiting[call]
            if self._trial is call:
                self._trial = None

    def _check(self, call: _Call) -> None:
        """
        Raises:
            Silent: the server is; or it may be, and too many have waited for longer.
        """
        with self._lock:
            now = time.monotonic()
            if call.silent_seconds >= call.patience_seconds:
                # Where others are heard it is one connection that hangs.
                if self._is_silent or self._is_doubtful(now):
                    self._is_silent, self._try_at = True, now + _PAUSE_SECONDS
                raise Silent(f"no sign of life for {call.patience_seconds:g} seconds")
            if self._is_silent and self._trial is not call:
                raise StillSilent("no sign of life, in another call")
            self._check_room(now, list(self._waiting).index(call))

    def _check_room(self, now: float, before: int) -> None:
        if self.most_in_doubt is not None and before >= self.most_in_doubt and self._is_doubtful(now):
            raise StillSilent(f"no sign of life for a moment, and {before} calls have waited for longer")

    def _is_doubtful(self, now: float) -> bool:
        return now - self._lively_at > _DOUBT_SECONDS


def _look_away(task: asyncio.Future[Any]) -> None:
    """Read the exception of a call that nobody waits for any more, so that asyncio does not log it as unread."""
    if not task.cancelled():
        task.exception()
