"""Downloads a certificate, checks its hash, and starts again after a broken connection."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import httpx2

from gkl.client.connection import Connection
from gkl.client.errors import ClientError, Unreachable
from gkl.files import atomic_path

# RFC 9530.
_DIGEST = "Repr-Digest"


def download_certificate(connection: Connection, address: str, path: Path) -> None:
    """Download the certificate at an address of the service. An existing file is replaced only by a complete one.

    Raises:
        ClientError: see `Client.certificate`.
    """
    tries = connection.tries("GET")
    while True:
        try:
            _download(connection, address, path)
        except OSError as error:
            raise ClientError(f"{path} cannot be written ({error.strerror})") from error
        except Unreachable:
            # The connection broke during the download. The request's own retries do not cover that.
            if not (connection.has_answered and tries.wait()):
                raise
        else:
            return


def _download(connection: Connection, address: str, path: Path) -> None:
    with connection.stream(address, {}) as response, atomic_path(path) as part:
        announced = re.fullmatch(r"sha-256=:([A-Za-z0-9+/=]{44}):", response.headers.get(_DIGEST, ""))
        if announced is None:
            raise connection.stranger(response)
        if _write(response, part) != announced[1]:
            raise ClientError(f"the certificate was damaged on the way, and {path} was not written; try again")


def _write(response: httpx2.Response, path: Path) -> str:
    """Write the body to a file and return its sha256 in base64, as in a Repr-Digest header."""
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for piece in response.iter_bytes():
            hasher.update(piece)
            file.write(piece)
    return base64.b64encode(hasher.digest()).decode()
