"""A client of an S3 store that reports each piece that it sends or receives as a sign of life (`app.core.silence`).

A socket's own timeouts are not enough: they do not end a request that waits for permission to send its body
(`Expect: 100-continue`), or one whose body the store does not accept.
"""

from __future__ import annotations

import io
import socket
from typing import Any

import s3fs
from aiobotocore.session import AioSession
from botocore.model import OperationModel

from app.core.silence import be_patient, sign_of_life

# How long a store may be silent while it joins the parts of a large object; it is silent for longer then than usual.
_JOINING_SECONDS = 60.0
_PARTS_AT_ONCE = 4
_READ_BYTES = 64 * 1024
_MOST_UNSENT_BYTES = 128 * 1024
# More than all threads together use, because a call that waits for a free connection shows no sign of life.
_MOST_CONNECTIONS = 400


def open_client(silent_seconds: float) -> Any:
    """Make a filesystem of fsspec for the store that the environment names. The first call connects.

    Args:
        silent_seconds: timeout of the sockets, for connecting and for reading.
    """
    files = s3fs.S3FileSystem(
        session=_session(),
        # Other processes write to the same bucket.
        use_listings_cache=False,
        skip_instance_cache=True,
        max_concurrency=_PARTS_AT_ONCE,
        config_kwargs={
            "connect_timeout": silent_seconds,
            "read_timeout": silent_seconds,
            "max_pool_connections": _MOST_CONNECTIONS,
            "retries": {"total_max_attempts": 2, "mode": "standard"},
            "connector_args": {"socket_factory": _socket},
        },
    )
    # One try: s3fs would repeat the tries that botocore makes, and the caller would wait for all of them.
    files.retries = 1
    return files


def _session() -> AioSession:
    """Make a session whose requests and answers report signs of life, through botocore's events."""
    session = AioSession()
    session.register("provide-client-params.s3", _hear_what_is_sent)
    session.register("after-call.s3", _hear_what_comes)
    return session


def _hear_what_is_sent(params: dict[str, Any], model: OperationModel, **_: Any) -> None:
    if isinstance(params.get("Body"), bytes):
        params["Body"] = _Sent(params["Body"])
    if model.name == "CompleteMultipartUpload":
        be_patient(_JOINING_SECONDS)


def _hear_what_comes(parsed: dict[str, Any], **_: Any) -> None:
    sign_of_life()
    if "Body" in parsed:
        parsed["Body"] = _Received(parsed["Body"])


class _Sent(io.BytesIO):
    """The body of a request, which reports each read as a sign of life."""

    def read(self, size: int | None = -1, /) -> bytes:
        sign_of_life()
        return super().read(size)


class _Received:
    """The body of an answer, which reports each piece as a sign of life."""

    def __init__(self, body: Any) -> None:
        self._body = body

    async def read(self, size: int = -1) -> bytes:
        if size >= 0:
            return await self._read(size)
        pieces = []
        while piece := await self._read(_READ_BYTES):
            pieces.append(piece)
        return b"".join(pieces)

    async def _read(self, size: int) -> bytes:
        piece: bytes = await self._body.read(size)
        sign_of_life()
        return piece

    def close(self) -> None:
        self._body.close()


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """Make a socket that accepts little more than it can send. Otherwise data would seem sent minutes before it is."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MOST_UNSENT_BYTES)
    return made
