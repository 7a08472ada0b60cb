"""A real S3 server, moto's, in a process of its own."""

from __future__ import annotations

import math
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import boto3
from botocore.exceptions import EndpointConnectionError

from tests.cluster import free_port

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "gklbench",
    "AWS_SECRET_ACCESS_KEY": "a secret of tests",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_ON_ITS_WAY = 16 * 1024


class ObjectServer:
    """It forgets everything when it stops."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What tells an S3 client of it."""
        return CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.1)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and says nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def make_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
        )

    def _answers(self) -> bool:
        try:
            self.client().list_buckets()
        except EndpointConnectionError:
            return False
        return True


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    server = ObjectServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


class Way:
    """A way to a server: on it bytes may go slowly, in both directions, or not at all, and it may be cut."""

    def __init__(self, port: int, *, bytes_per_second: float = math.inf) -> None:
        self.bytes_per_second, self.is_blocked = bytes_per_second, False
        self.port = free_port()
        self._behind = port
        self._open: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.bytes_per_second < math.inf:
            # Inherited by what is accepted: little is on its way at any time.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ON_ITS_WAY)
        listening.bind(("127.0.0.1", self.port))
        listening.listen()
        self._open = [listening]
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def cut(self) -> None:
        """What is on its way is lost, and connections are refused until it is open again."""
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                front, _ = listening.accept()
                behind = socket.create_connection(("127.0.0.1", self._behind))
                self._open += [front, behind]
                for source, target in ((front, behind), (behind, front)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(_ON_ITS_WAY):
                time.sleep(len(piece) / self.bytes_per_second)
                while self.is_blocked:
                    time.sleep(0.05)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)


@contextmanager
def way_to(port: int, *, bytes_per_second: float = math.inf) -> Iterator[Way]:
    way = Way(port, bytes_per_second=bytes_per_second)
    try:
        yield way
    finally:
        way.cut()
