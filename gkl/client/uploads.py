"""Uploads a file in pieces, and resumes after a broken connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2

from gkl.answers import UploadView
from gkl.client.connection import AWAY, Connection, problem_of, retry_after
from gkl.client.errors import ClientError, NotTheService
from gkl.files import sha256_of

_RECONNECT_SECONDS = 1.0
_MOST_SECONDS = 60.0
_BROKEN_UPLOADS = 5
_READ_BYTES = 1024 * 1024
# Below the 100 MB limit of some proxies. A proxy with a lower limit answers 413 and gets smaller pieces.
_PIECE_BYTES = 64 * 1024 * 1024
_LEAST_PIECE_BYTES = 64 * 1024


class _PieceTooLarge(Exception):
    """A proxy refused a piece as too large."""


class _Passing(httpx2.TransportError):
    """An answer that may differ in a moment: the service is busy or restarting."""


class Uploader:
    """Uploads files, and remembers the size of pieces that gets through."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._piece_bytes = _PIECE_BYTES

    def send(self, path: Path, on_progress: Callable[[float], None]) -> UploadView:
        """
        Raises:
            ClientError: see `Client.upload`.
        """
        connection, sha256, size = self._connection, sha256_of(path), path.stat().st_size
        known = connection.send("GET", f"/api/v1/weights/{sha256}", expected=(404,))
        if known.is_success:
            return connection.parse(UploadView, known)
        begun = connection.send("POST", "/api/v1/uploads", headers={"Upload-Length": str(size)})
        # Resolved against the request's address: an absolute path in Location includes a proxy's prefix.
        address = str(begun.url.join(begun.headers.get("Location", "")))
        offset, broken, wait = 0, 0, _RECONNECT_SECONDS
        while True:
            try:
                response = self._send_piece(address, path, offset, on_progress)
                if response.status_code == 200:
                    return connection.parse(UploadView, response)
                offset, broken = connection.number(response, "Upload-Offset"), 0
                continue
            except _PieceTooLarge as error:
                self._take_smaller_pieces(size - offset, error)
                continue
            except httpx2.TransportError as error:
                broken += 1
                is_cut = not isinstance(error, _Passing)
                if broken > _BROKEN_UPLOADS:
                    raise connection.unreachable(error) from error
            time.sleep(wait * broken)
            try:
                looked = connection.http.head(address)
            except httpx2.TransportError:
                continue
            if looked.status_code in (429, *AWAY):
                wait = min(_MOST_SECONDS, retry_after(looked) or wait)
                continue
            if not looked.is_success:
                raise ClientError(
                    f"the service has dropped the upload ({looked.status_code}); send the file again",
                    status=looked.status_code,
                )
            now, wait = connection.number(looked, "Upload-Offset"), _RECONNECT_SECONDS
            if now == offset and is_cut and self._piece_bytes > _LEAST_PIECE_BYTES:
                # Some proxies close the connection instead of answering 413.
                self._piece_bytes = max(_LEAST_PIECE_BYTES, min(self._piece_bytes, size - offset) // 2)
                broken = 0
            # Breaks count only while the upload makes no progress.
            broken = broken if now == offset else 0
            offset = now

    def _take_smaller_pieces(self, left: int, error: _PieceTooLarge) -> None:
        """Halve the size of pieces, for this file and later ones.

        Raises:
            NotTheService: even the smallest pieces are refused.
        """
        tried = min(self._piece_bytes, left)
        if tried <= _LEAST_PIECE_BYTES:
            raise NotTheService(
                f"a proxy between here and {self._connection.url} refuses even {tried} bytes as too large ({error}); "
                "its owner has to allow larger bodies (nginx: client_max_body_size)",
                status=413,
            ) from error
        self._piece_bytes = max(_LEAST_PIECE_BYTES, tried // 2)

    def _send_piece(
        self, address: str, path: Path, offset: int, on_progress: Callable[[float], None]
    ) -> httpx2.Response:
        size = path.stat().st_size
        end = min(size, offset + self._piece_bytes)

        def piece() -> Iterator[bytes]:
            with path.open("rb") as file:
                file.seek(offset)
                while read := file.read(min(_READ_BYTES, end - file.tell())):
                    yield read
                    on_progress(file.tell() / size)

        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(offset),
            "Content-Length": str(end - offset),
        }
        response = self._connection.http.patch(address, content=piece(), headers=headers, timeout=600)
        if response.status_code == 413 and problem_of(response) is None:
            raise _PieceTooLarge("413")
        if response.status_code in (409, 429, *AWAY):
            # The service has not noticed yet that the last piece broke off, is busy, or is being restarted.
            raise _Passing(f"it answered {response.status_code}")
        return self._connection.check(response)
