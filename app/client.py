"""The REST client behind `gklbench submit` and `gklbench demo`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from app.schemas import JobView, ModelDetail, UploadView
from app.tables import JobState
from gkl.files import sha256_of
from gkl.spec import EvaluateSpec, TrainSpec

_RECONNECT_SECONDS = 1.0
_GIVE_UP_SECONDS = 120.0
_BROKEN_UPLOADS = 5
_PIECE_BYTES = 1024 * 1024
# What a service that is being restarted, or whose database is, answers for a while.
_PASSING = (502, 503, 504)


class ClientError(Exception):
    """The service refused, or could not be reached; the message says what to do."""


@dataclass(frozen=True)
class StreamEvent:
    """An event of a job's stream."""

    type: str
    data: dict[str, Any]


class Client:
    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx2.Client(base_url=self.url, timeout=30, headers=headers)

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
        return JobView.model_validate(self._checked(response))

    def cancel(self, job_id: int) -> JobView:
        return JobView.model_validate(self._post(f"/api/v1/jobs/{job_id}/cancel"))

    def retry(self, job_id: int) -> JobView:
        return JobView.model_validate(self._post(f"/api/v1/jobs/{job_id}/retry"))

    def send_weights(self, path: Path, *, told: Callable[[float], None] = lambda _: None) -> UploadView:
        """In pieces, each from where the last one broke off; weights that are there already are not sent again.

        Args:
            path: of the file.
            told: is called with the share that is there.
        """
        sha256, size = sha256_of(path), path.stat().st_size
        known = self._http.get(f"/api/v1/weights/{sha256}")
        if known.is_success:
            return UploadView.model_validate(known.json())
        begun = self._sent("POST", "/api/v1/uploads", headers={"Upload-Length": str(size)})
        address, offset, broken, wait = begun.headers["Location"], 0, 0, _RECONNECT_SECONDS
        while True:
            try:
                return self._go_on(address, path, offset, told)
            except httpx2.TransportError as error:
                broken += 1
                if broken > _BROKEN_UPLOADS:
                    raise self._unreachable(error) from error
            time.sleep(wait * broken)
            try:
                looked = self._http.head(address)
            except httpx2.TransportError:
                continue
            if looked.status_code in (429, *_PASSING):
                wait = min(60.0, float(looked.headers.get("Retry-After", wait)))
                continue
            if not looked.is_success:
                raise ClientError(f"the upload was given up there ({looked.status_code}); send the file again")
            now, wait = int(looked.headers["Upload-Offset"]), _RECONNECT_SECONDS
            # One that gets on may break as often as it likes.
            broken = broken if now == offset else 0
            offset = now

    def _go_on(self, address: str, path: Path, offset: int, told: Callable[[float], None]) -> UploadView:
        size = path.stat().st_size

        def rest() -> Iterator[bytes]:
            with path.open("rb") as file:
                file.seek(offset)
                while piece := file.read(_PIECE_BYTES):
                    yield piece
                    told(file.tell() / size)

        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(offset),
            "Content-Length": str(size - offset),
        }
        response = self._http.patch(address, content=rest(), headers=headers, timeout=600)
        if response.status_code in (409, 429, *_PASSING):
            # The service has not noticed yet that the piece before broke off, or is being restarted.
            raise httpx2.TransportError(f"it answered {response.status_code}")
        return UploadView.model_validate(self._checked(response))

    def _sent(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            self._checked(response)
        return response

    def _send_file(self, address: str, path: Path, query: dict[str, str]) -> Any:
        try:
            with path.open("rb") as file:
                headers = {"Content-Type": "application/octet-stream"}
                response = self._http.post(address, content=file, params=query, headers=headers, timeout=600)
        except OSError as error:
            raise ClientError(f"{path} cannot be read ({error.strerror})") from error
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        return self._checked(response)

    def attack(self, entry_id: int, examples: Path, *, name: str, submitter: str | None) -> JobView:
        query = {"name": name} | ({} if submitter is None else {"submitter": submitter})
        path = f"/api/v1/entries/{entry_id}/attacks"
        return JobView.model_validate(self._send_file(path, examples, query))

    def job(self, job_id: int) -> JobView:
        return JobView.model_validate(self._get(f"/api/v1/jobs/{job_id}"))

    def model(self, model_id: int) -> ModelDetail:
        return ModelDetail.model_validate(self._get(f"/api/v1/models/{model_id}"))

    def rank(self, dataset: str, threat_model: str, model_id: int) -> int | None:
        board = self._get(f"/api/v1/leaderboards/{dataset}/{threat_model}")
        return next((entry["rank"] for entry in board["entries"] if entry["weights_id"] == model_id), None)

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

    def _get(self, path: str) -> Any:
        try:
            return self._checked(self._http.get(path))
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    def _check_stream(self, response: httpx2.Response) -> None:
        if response.status_code in _PASSING:
            raise httpx2.TransportError(f"it answered {response.status_code}")
        if response.status_code != 200:
            response.read()
            self._checked(response)

    def _post(self, path: str) -> Any:
        try:
            return self._checked(self._http.post(path))
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    def _checked(self, response: httpx2.Response) -> Any:
        if response.is_success:
            return response.json()
        try:
            detail = response.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = response.text[:500]
        raise ClientError(f"the service answered {response.status_code}: {detail}")

    def _unreachable(self, error: Exception) -> ClientError:
        return ClientError(
            f"no service answers at {self.url} ({error}); start one with 'gklbench up', or give its address with --url"
        )
