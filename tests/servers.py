"""The API in this process on a port of its own, and a proxy that stands before it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import uvicorn

from app.core.settings import Settings
from app.main import create_app
from tests.cluster import free_port, until

_PAGE = b"<html><body><h1>A page of the proxy</h1></body></html>"


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """The API and the pages alone, in this process."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=free_port(), log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.config.port}"
    finally:
        server.should_exit = True
        thread.join()


class LimitedProxy(ThreadingHTTPServer):
    """A reverse proxy that takes bodies of at most `max_bytes`, and answers others with a page of HTML and 413.

    With `cuts` it ends the connection instead. `status`: it answers everything with that, as one whose service is away.
    `times`: it does so only that often, and then hands everything on. `halves`: so often it sends half an answer.
    `damages`: it changes the last byte of each.
    """

    daemon_threads = True

    def __init__(
        self,
        upstream: str,
        *,
        max_bytes: int = 1024**2,
        cuts: bool = False,
        status: int = 0,
        times: int | None = None,
        halves: int = 0,
        damages: bool = False,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.times, self.halves, self.damages, self.retry_after = times, halves, damages, retry_after
        self.upstream, self.max_bytes, self.cuts, self.status = urlsplit(upstream).netloc, max_bytes, cuts, status
        self.refused = 0
        self.pieces: list[int] = []
        """Bytes of each body that was handed on."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def limited_proxy(upstream: str, **options: int) -> Iterator[LimitedProxy]:
    with LimitedProxy(upstream, **options) as proxy:  # type: ignore[arg-type]
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LimitedProxy

    def _forward(self) -> None:
        size, proxy = int(self.headers.get("Content-Length") or 0), self.server
        is_away = (proxy.cuts or proxy.status) and proxy.times is not None and proxy.refused < proxy.times
        if size > proxy.max_bytes or is_away or (proxy.status and proxy.times is None):
            proxy.refused += 1
            self.close_connection = True
            if proxy.cuts:
                return
            left = size
            while left and (read := self.rfile.read(min(left, 65536))):
                left -= len(read)
            asked = [] if proxy.retry_after is None else [("Retry-After", str(proxy.retry_after))]
            headers = [("Content-Type", "text/html"), ("Connection", "close"), *asked]
            self._answer(proxy.status or 413, headers, _PAGE)
            return
        if size:
            proxy.pieces.append(size)
        behind = http.client.HTTPConnection(proxy.upstream, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "accept-encoding")}
        with closing(behind):
            behind.request(self.command, self.path, self.rfile.read(size), headers)
            answer = behind.getresponse()
            content = answer.read()
        hop = ("transfer-encoding", "content-length", "connection", "date", "server")
        self._answer(answer.status, [pair for pair in answer.getheaders() if pair[0].lower() not in hop], content)

    do_GET = do_POST = do_PATCH = do_HEAD = do_DELETE = do_OPTIONS = _forward  # noqa: N815 - as the server calls them

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.server.halves and status == 200:
            self.server.halves -= 1
            self.close_connection = True
            content = content[: len(content) // 2]
        if self.server.damages and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
