"""The REST client behind `gklbench submit` and `gklbench demo`."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx2
from pydantic import BaseModel, ValidationError

from app.settings import is_loopback
from gkl.answers import JobState, JobView, ModelDetail, UploadView
from gkl.files import sha256_of
from gkl.spec import EvaluateSpec, TrainSpec

_RECONNECT_SECONDS = 1.0
_GIVE_UP_SECONDS = 120.0
_BROKEN_UPLOADS = 5
_READ_BYTES = 1024 * 1024
# Below the 100 MB that some proxies take at once; what takes less says so with 413, and gets smaller pieces.
_PIECE_BYTES = 64 * 1024 * 1024
_LEAST_PIECE_BYTES = 64 * 1024
# What a service that is being restarted, or whose database is, answers for a while.
_PASSING = (502, 503, 504)
_View = TypeVar("_View", bound=BaseModel)


class ClientError(Exception):
    """The service refused, or could not be reached; the message says what to do."""


class _PieceTooLarge(Exception):
    """Something between here and the service refused the size of a piece."""


@dataclass(frozen=True)
class StreamEvent:
    """An event of a job's stream."""

    type: str
    data: dict[str, Any]


class _Passing(httpx2.TransportError):
    """An answer that may be another one in a moment."""


class _Problem(BaseModel):
    """What is read of an error of the service."""

    code: str
    detail: str


class Client:
    def __init__(self, url: str, token: str | None = None) -> None:
        """
        Raises:
            ClientError: the address, the token or a proxy of the environment cannot be used.
        """
        self.url = url.rstrip("/")
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise ClientError("the token holds characters that no token has; copy it again")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            host = httpx2.URL(self.url).host
            # This machine is asked directly, whatever proxy the environment names: that would ask its own machine.
            transport = httpx2.HTTPTransport() if is_loopback(host) else None
            self._http = httpx2.Client(base_url=self.url, timeout=30, headers=headers, transport=transport)
        except httpx2.InvalidURL as error:
            raise ClientError(f"{url!r} is no address; write http://host:port or https://host") from error
        except ImportError as error:
            raise ClientError(
                "the environment names a SOCKS proxy (ALL_PROXY, HTTP_PROXY or HTTPS_PROXY), which needs one more "
                "package: pip install 'httpx2[socks]'; or name the service's host in NO_PROXY"
            ) from error
        except ValueError as error:
            raise ClientError(f"a proxy that the environment names cannot be used: {error}") from error
        self._piece_bytes = _PIECE_BYTES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def submit(
        self,
        spec: TrainSpec | EvaluateSpec,
        *,
        submitter: str | None = None,
        priority: int | None = None,
        key: str | None = None,
    ) -> JobView:
        # A key of its own makes it safe to send again when only the answer was lost.
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        body = spec.model_dump(mode="json")
        options = {"submitter": submitter, "priority": priority}
        query = {name: value for name, value in options.items() if value is not None}
        for last in (False, True):
            try:
                response = self._http.post("/api/v1/jobs", json=body, params=query, headers=headers)
                break
            except httpx2.TransportError as error:
                if last or isinstance(error, httpx2.ConnectError):
                    raise self._unreachable(error) from error
        return self._view(JobView, self._check(response))

    def cancel(self, job_id: int) -> JobView:
        return self._view(JobView, self._sent("POST", f"/api/v1/jobs/{job_id}/cancel"))

    def retry(self, job_id: int) -> JobView:
        return self._view(JobView, self._sent("POST", f"/api/v1/jobs/{job_id}/retry"))

    def send_weights(self, path: Path, *, told: Callable[[float], None] = lambda _: None) -> UploadView:
        """In pieces, each from where the last one broke off; weights that are there already are not sent again.

        Args:
            path: of the file.
            told: is called with the share that is there.
        """
        try:
            return self._send_weights(path, told)
        except OSError as error:
            raise ClientError(f"{path} cannot be read ({error.strerror})") from error

    def _send_weights(self, path: Path, told: Callable[[float], None]) -> UploadView:
        sha256, size = sha256_of(path), path.stat().st_size
        known = self._sent("GET", f"/api/v1/weights/{sha256}", expected=(404,))
        if known.is_success:
            return self._view(UploadView, known)
        begun = self._sent("POST", "/api/v1/uploads", headers={"Upload-Length": str(size)})
        # Relative to the request, not to the service's address: a path in it is the whole path.
        address = str(begun.url.join(begun.headers.get("Location", "")))
        offset, broken, wait = 0, 0, _RECONNECT_SECONDS
        while True:
            try:
                response = self._send_piece(address, path, offset, told)
                if response.status_code == 200:
                    return self._view(UploadView, response)
                offset, broken = self._offset_in(response), 0
                continue
            except _PieceTooLarge as error:
                self._take_smaller_pieces(size - offset, error)
                continue
            except httpx2.TransportError as error:
                broken += 1
                is_cut = not isinstance(error, _Passing)
                if broken > _BROKEN_UPLOADS:
                    raise self._unreachable(error) from error
            time.sleep(wait * broken)
            try:
                looked = self._http.head(address)
            except httpx2.TransportError:
                continue
            if looked.status_code in (429, *_PASSING):
                wait = min(60.0, _seconds(looked.headers.get("Retry-After"), wait))
                continue
            if not looked.is_success:
                raise ClientError(f"the upload was given up there ({looked.status_code}); send the file again")
            now, wait = self._offset_in(looked), _RECONNECT_SECONDS
            if now == offset and is_cut and self._piece_bytes > _LEAST_PIECE_BYTES:
                # A proxy may end the connection instead of saying that a piece is too large.
                self._piece_bytes = max(_LEAST_PIECE_BYTES, min(self._piece_bytes, size - offset) // 2)
                broken = 0
            # One that gets on may break as often as it likes.
            broken = broken if now == offset else 0
            offset = now

    def _take_smaller_pieces(self, left: int, error: _PieceTooLarge) -> None:
        """For the rest of this file and for the files after it."""
        tried = min(self._piece_bytes, left)
        if tried <= _LEAST_PIECE_BYTES:
            raise ClientError(
                f"a proxy between here and {self.url} refuses even {tried} bytes as too large ({error}); its owner has "
                "to allow larger bodies (nginx: client_max_body_size)"
            ) from error
        self._piece_bytes = max(_LEAST_PIECE_BYTES, tried // 2)

    def _send_piece(self, address: str, path: Path, offset: int, told: Callable[[float], None]) -> httpx2.Response:
        size = path.stat().st_size
        end = min(size, offset + self._piece_bytes)

        def piece() -> Iterator[bytes]:
            with path.open("rb") as file:
                file.seek(offset)
                while read := file.read(min(_READ_BYTES, end - file.tell())):
                    yield read
                    told(file.tell() / size)

        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(offset),
            "Content-Length": str(end - offset),
        }
        response = self._http.patch(address, content=piece(), headers=headers, timeout=600)
        if response.status_code == 413 and _problem(response) is None:
            raise _PieceTooLarge("413")
        if response.status_code in (409, 429, *_PASSING):
            # The service has not noticed yet that the piece before broke off, or is being restarted.
            raise _Passing(f"it answered {response.status_code}")
        return self._check(response)

    def _offset_in(self, response: httpx2.Response) -> int:
        text = response.headers.get("Upload-Offset", "")
        if not re.fullmatch(r"[0-9]{1,19}", text):
            raise self._stranger(response)
        return int(text)

    def _sent(self, method: str, path: str, *, expected: tuple[int, ...] = (), **options: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx2.RequestError as error:
            raise self._unreachable(error) from error
        return response if response.status_code in expected else self._check(response)

    def attack(self, entry_id: int, examples: Path, *, name: str, submitter: str | None) -> JobView:
        query = {"name": name} | ({} if submitter is None else {"submitter": submitter})
        address, headers = f"/api/v1/entries/{entry_id}/attacks", {"Content-Type": "application/octet-stream"}
        try:
            with examples.open("rb") as file:
                sent = self._sent("POST", address, content=file, params=query, headers=headers, timeout=600)
        except OSError as error:
            raise ClientError(f"{examples} cannot be read ({error.strerror})") from error
        return self._view(JobView, sent)

    def job(self, job_id: int) -> JobView:
        return self._view(JobView, self._sent("GET", f"/api/v1/jobs/{job_id}"))

    def listed(self, what: str, *, limit: int) -> list[dict[str, Any]]:
        """The first so many 'jobs', 'workers' or 'boards', as the service tells them."""
        address = {"boards": "leaderboards"}.get(what, what)
        query = {} if what == "boards" else {"limit": limit}
        response = self._sent("GET", f"/api/v1/{address}", params=query)
        answer = self._json(response)
        found = answer.get(what) if isinstance(answer, dict) else answer
        if not isinstance(found, list):
            raise self._stranger(response)
        return found

    def log(self, job_id: int, offset: int = 0) -> tuple[bytes, int]:
        """What the runs of a job wrote from a byte on, and the byte to go on from."""
        answer = self._sent("GET", f"/api/v1/jobs/{job_id}/log", params={"offset": offset})
        size = answer.headers.get("X-Log-Size", "")
        if not re.fullmatch(r"[0-9]{1,19}", size):
            raise self._stranger(answer)
        return answer.content, int(size)

    def board(self, dataset: str, threat_model: str) -> list[dict[str, Any]]:
        """All entries of a board in its order, however many pages they are."""
        found: list[dict[str, Any]] = []
        query: dict[str, Any] = {"limit": 1000}
        while True:
            response = self._sent("GET", f"/api/v1/leaderboards/{dataset}/{threat_model}", params=query)
            page = self._json(response)
            if not isinstance(page, dict) or not {"entries", "next_cursor"} <= page.keys():
                raise self._stranger(response)
            found += page["entries"]
            if page["next_cursor"] is None:
                return found
            query["cursor"] = page["next_cursor"]

    def export(self, dataset: str, threat_model: str, file_format: str) -> Iterator[bytes]:
        """A board as a file, piece by piece."""
        path = f"/api/v1/leaderboards/{dataset}/{threat_model}/export/{file_format}"
        try:
            with self._http.stream("GET", path) as response:
                if not response.is_success:
                    response.read()
                self._check(response)
                yield from response.iter_bytes()
        except httpx2.RequestError as error:
            raise self._unreachable(error) from error

    def _json(self, response: httpx2.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise self._stranger(response) from error

    def model(self, model_id: int) -> ModelDetail:
        """With all its evaluations, however many pages they are."""
        found = self._model_page(model_id, {})
        evaluations, cursor = found.evaluations, found.next_cursor
        while cursor is not None:
            older = self._model_page(model_id, {"cursor": cursor})
            evaluations, cursor = evaluations + older.evaluations, older.next_cursor
        return found.model_copy(update={"evaluations": evaluations, "next_cursor": None})

    def _model_page(self, model_id: int, query: dict[str, int]) -> ModelDetail:
        return self._view(ModelDetail, self._sent("GET", f"/api/v1/models/{model_id}", params=query))

    def follow(self, job_id: int) -> Iterator[StreamEvent]:
        """The job's events from the first to its last state; reconnects and goes on where it was cut off.

        Of a job that was retried also the states in which it had ended before.
        """
        last_id: str | None = None
        has_ended = False
        lost_at: float | None = None
        while True:
            headers = {} if last_id is None else {"Last-Event-ID": last_id}
            try:
                with self._http.sse(f"/api/v1/jobs/{job_id}/events", headers=headers, timeout=60) as stream:
                    self._check_stream(stream.response)
                    lost_at = None
                    for event in stream:
                        last_id = event.id or last_id
                        data: Any = event.json()
                        yield StreamEvent(event.event, data)
                        if event.event == "state":
                            has_ended = JobState(data["state"]).is_final
                    # The service ends the stream when nothing more will come.
                    if has_ended:
                        return
            except httpx2.TransportError as error:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > _GIVE_UP_SECONDS:
                    raise self._unreachable(error) from error
            time.sleep(_RECONNECT_SECONDS)

    def _check_stream(self, response: httpx2.Response) -> None:
        if response.status_code in _PASSING:
            raise httpx2.TransportError(f"it answered {response.status_code}")
        if response.status_code != 200:
            response.read()
            self._check(response)
            raise self._stranger(response)

    def _view(self, model: type[_View], response: httpx2.Response) -> _View:
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise self._stranger(response) from error

    def _check(self, response: httpx2.Response) -> httpx2.Response:
        """
        Raises:
            ClientError: it is no success.
        """
        if response.is_success:
            return response
        detail = _problem(response)
        if detail is None:
            raise self._stranger(response)
        raise ClientError(f"the service answered {response.status_code}: {detail}")

    def _stranger(self, response: httpx2.Response) -> ClientError:
        """What answered is not the service: its page would say nothing on a terminal."""
        status = f"{response.status_code} {response.reason_phrase}".strip()
        who = f"what answers at {self.url} is not GKL Bench, or a proxy in front of it ({status})"
        if response.is_redirect:
            return ClientError(f"{who}; it leads to {response.headers.get('Location')}: give that address with --url")
        if response.status_code == 413:
            return ClientError(
                f"a proxy between here and {self.url} refuses the body as too large ({status}); its owner has to allow "
                "larger ones (nginx: client_max_body_size)"
            )
        return ClientError(f"{who}; try again later, or look at the address and at the proxy")

    def _unreachable(self, error: Exception) -> ClientError:
        host = httpx2.URL(self.url).host
        is_direct = is_loopback(host) or not getproxies() or proxy_bypass(host)
        through = "" if is_direct else " through the proxy that the environment names; NO_PROXY lists hosts without one"
        return ClientError(
            f"no service answers at {self.url} ({error}){through}; start one with 'gklbench up', or give its address "
            "with --url"
        )


def _problem(response: httpx2.Response) -> str | None:
    """The sentence of an error of the service; None where somebody else answered."""
    try:
        return _Problem.model_validate_json(response.content).detail
    except ValidationError:
        return None


def _seconds(text: str | None, otherwise: float) -> float:
    """Of a Retry-After, which may also be a date."""
    return float(text) if text is not None and re.fullmatch(r"[0-9]{1,6}", text) else otherwise
