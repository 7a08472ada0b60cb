"""A Python client of the service's HTTP API: `from gkl.client import Client`.

>>> from gkl.client import Client
>>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
...     job = client.submit(client.recipes()["digits"])
...     client.wait(job.id)
"""

from gkl.client.board import Board
from gkl.client.client import Client
from gkl.client.errors import (
    ClientError,
    Conflict,
    Invalid,
    NotFound,
    NotTheService,
    Refused,
    TooManyRequests,
    Unavailable,
    Unreachable,
)
from gkl.client.events import StreamEvent
from gkl.client.logs import LogPart

__all__ = [
    "Board",
    "Client",
    "ClientError",
    "Conflict",
    "Invalid",
    "LogPart",
    "NotFound",
    "NotTheService",
    "Refused",
    "StreamEvent",
    "TooManyRequests",
    "Unavailable",
    "Unreachable",
]
