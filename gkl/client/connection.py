"""Sends requests, retries them where that is safe, and parses the answers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx2
from pydantic import TypeAdapter, ValidationError

from gkl.addresses import is_loopback
from gkl.answers import FieldProblem, Problem
from gkl.client.errors import ClientError, Invalid, NotTheService, TooManyRequests, Unreachable, class_of

_TIMEOUT_SECONDS = 30
_PAUSES = (0.5, 1.0, 2.0)
"""Seconds before the second, third and fourth try, unless the service sends Retry-After."""
# Statuses while the service or its database is being restarted.
AWAY = (502, 503, 504)
_PASSING = (429, *AWAY)
_BROKEN = (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.TimeoutException)
_UNHEARD = (httpx2.ConnectError, httpx2.ConnectTimeout)
_Answer = TypeVar("_Answer")


class Connection:
    """HTTP connections to one service, with one token."""

    def __init__(self, url: str, token: str | None, *, patience_seconds: float) -> None:
        """
        Raises:
            Invalid: the address, the token, or a proxy set in the environment cannot be used.
        """
        self.url = url.rstrip("/")
        self.patience_seconds = patience_seconds
        self.has_answered = False
        """Whether any request has been answered."""
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise _unusable("token", "the token holds characters that no token has; copy it again")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            # No proxy for loopback addresses: a proxy would connect to its own machine.
            transport = httpx2.HTTPTransport() if is_loopback(_host(self.url)) else None
            self.http = httpx2.Client(base_url=self.url, timeout=_TIMEOUT_SECONDS, headers=headers, transport=transport)
        except httpx2.InvalidURL as error:
            raise _unusable("url", f"{url!r} is no address; write http://host:port or https://host") from error
        except ImportError as error:
            raise Invalid(
                "the environment names a SOCKS proxy (ALL_PROXY, HTTP_PROXY or HTTPS_PROXY), which needs one more "
                "package: pip install 'httpx2[socks]'; or name the service's host in NO_PROXY"
            ) from error
        except ValueError as error:
            raise Invalid(f"a proxy that the environment names cannot be used: {error}") from error

    # --- requests ----------------------------------------------------------------------------------------------------

    def send(self, method: str, path: str, *, expected: tuple[int, ...] = (), **options: Any) -> httpx2.Response:
        """Send a request, and retry it if that is safe: a GET, a HEAD, or one with an Idempotency-Key.

        Args:
            method: the request's method.
            path: path on the service, or a full address.
            expected: error statuses to return instead of raising them.
            options: further arguments of `httpx2.Client.request`.

        Raises:
            ClientError: the answer is an error, or there is no answer.
        """
        tries = self.tries(method, options.get("headers"))
        while True:
            try:
                response = self.http.request(method, path, **options)
            except httpx2.RequestError as error:
                if self._may_pass(error) and tries.wait():
                    continue
                raise self.unreachable(error) from error
            self.has_answered = True
            if response.status_code in expected:
                return response
            if response.status_code not in _PASSING or not tries.wait(retry_after(response)):
                return self.check(response)

    def read(self, kind: type[_Answer], method: str, path: str, **options: Any) -> _Answer:
        """Send a request and parse the answer as `kind`.

        Raises:
            ClientError: see `send`.
            NotTheService: the answer is not of this kind.
        """
        return self.parse(kind, self.send(method, path, **options))

    def pages(self, path: str, query: Mapping[str, Any]) -> Iterator[httpx2.Response]:
        """Iterate over the pages of a list, following each page's `Link` header."""
        response = self.send("GET", path, params=query)
        while True:
            yield response
            following = response.links.get("next", {}).get("url")
            if following is None:
                return
            # Relative to the request's address: behind a proxy the service may have another name and path.
            response = self.send("GET", str(response.url.join(following)))

    @contextmanager
    def stream(self, path: str, query: Mapping[str, Any]) -> Iterator[httpx2.Response]:
        """Send a GET request whose body is read piece by piece. It is retried only until the headers have arrived."""
        tries = self.tries("GET")
        while True:
            request = self.http.build_request("GET", path, params=query)
            try:
                response = self.http.send(request, stream=True)
            except httpx2.RequestError as error:
                if self._may_pass(error) and tries.wait():
                    continue
                raise self.unreachable(error) from error
            self.has_answered = True
            if response.status_code in _PASSING and tries.wait(retry_after(response)):
                response.close()
                continue
            break
        try:
            if not response.is_success:
                response.read()
            yield self.check(response)
        except httpx2.RequestError as error:
            raise self.unreachable(error) from error
        finally:
            response.close()

    def tries(self, method: str, headers: Mapping[str, str] | None = None) -> Tries:
        is_safe = method in ("GET", "HEAD") or "Idempotency-Key" in (headers or {})
        return Tries(self.patience_seconds if is_safe else 0)

    def _may_pass(self, error: Exception) -> bool:
        """Whether a retry may help. A refused first connection is not retried: the address is probably wrong."""
        return isinstance(error, _BROKEN) and (self.has_answered or not isinstance(error, _UNHEARD))

    # --- reading -----------------------------------------------------------------------------------------------------

    def parse(self, kind: type[_Answer], response: httpx2.Response) -> _Answer:
        try:
            answer: _Answer = _adapter(kind).validate_json(response.content)
        except ValidationError as error:
            raise self.stranger(response) from error
        return answer

    def number(self, response: httpx2.Response, header: str) -> int:
        """Parse a header with a whole number, which the service's answer must have."""
        text = response.headers.get(header, "")
        if not re.fullmatch(r"[0-9]{1,19}", text):
            raise self.stranger(response)
        return int(text)

    def check(self, response: httpx2.Response) -> httpx2.Response:
        """
        Raises:
            ClientError: the status is an error.
        """
        if response.is_success:
            return response
        problem = problem_of(response)
        if problem is None:
            raise self.stranger(response)
        status = response.status_code
        error = class_of(status)(
            f"the service answered {status}: {problem.detail}",
            status=status,
            code=problem.code,
            detail=problem.detail,
            errors=problem.errors,
        )
        if isinstance(error, TooManyRequests):
            error.retry_after = retry_after(response)
        raise error

    def stranger(self, response: httpx2.Response) -> NotTheService:
        """What answered is not the service: its page would say nothing on a terminal."""
        status = f"{response.status_code} {response.reason_phrase}".strip()
        sentence = f"what answers at {self.url} is not GKL Bench, or a proxy in front of it ({status}); "
        if response.is_redirect:
            sentence += f"it leads to {response.headers.get('Location')}: give that address instead"
        elif response.status_code == 413:
            sentence = (
                f"a proxy between here and {self.url} refuses the body as too large ({status}); its owner has to allow "
                "larger ones (nginx: client_max_body_size)"
            )
        else:
            sentence += "try again later, or look at the address and at the proxy"
        return NotTheService(sentence, status=response.status_code)

    def unreachable(self, error: Exception) -> Unreachable:
        host = httpx2.URL(self.url).host
        is_direct = is_loopback(host) or not getproxies() or proxy_bypass(host)
        through = "" if is_direct else " through the proxy that the environment names; NO_PROXY lists hosts to exclude"
        return Unreachable(f"no service answers at {self.url} ({error}){through}")


class Tries:
    """Limits how often, and for how long, one request is retried."""

    def __init__(self, patience_seconds: float) -> None:
        self._pauses = list(_PAUSES)
        self._until = time.monotonic() + patience_seconds

    def wait(self, asked_seconds: float | None = None) -> bool:
        """Sleep until the next try; return False at once if none is left or it would come too late."""
        if not self._pauses:
            return False
        seconds = max(self._pauses.pop(0), asked_seconds or 0)
        if time.monotonic() + seconds >= self._until:
            return False
        time.sleep(seconds)
        return True


def problem_of(response: httpx2.Response) -> Problem | None:
    """Parse an error of the service; None if something else answered."""
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return None


def retry_after(response: httpx2.Response) -> float | None:
    """The Retry-After header in seconds. It may also be a date, which this service never sends."""
    text = response.headers.get("Retry-After", "")
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text) else None


# Kept, because making an adapter takes longer than reading an answer.
_adapters: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def _host(url: str) -> str:
    """
    Raises:
        InvalidURL: it is not an http or https address.
    """
    address = httpx2.URL(url)
    if address.scheme not in ("http", "https") or not address.host:
        raise httpx2.InvalidURL(url)
    return address.host


def _unusable(name: str, sentence: str) -> ClientError:
    return Invalid(sentence, errors=[FieldProblem(location=name, message=sentence)])
