"""What `benchmarks/chaos.py` does to a deployment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sqlalchemy import select

from app.db.tables import FileKind, Job, JobFile
from app.jobs.broker import make_celery, publisher
from app.store import FolderStore, open_store
from gkl.answers import JobState
from tests.cluster import Cluster, PostgresServer, free_port
from tests.object_server import ObjectServer, Way, object_server, way_to

_DISK_BYTES = 512 * 1024**2
_IN_OWN_NAMESPACE = "CHAOS_IN_OWN_NAMESPACE"
_BUCKET = "gklbench"


class Chaos:
    """The processes of a deployment, and random faults on them and on what they need."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        workers: int,
        seed: int,
        postgres: PostgresServer | None,
        disk: Path | None,
        bucket: Bucket | None,
    ) -> None:
        """
        Args:
            cluster: where they run; two processes of the API and two relays are started.
            workers: how many.
            seed: of the choices.
            postgres: the database, if it is not SQLite.
            disk: a file system that may be filled.
            bucket: the store, if it is not a folder.
        """
        self.cluster, self.postgres, self.disk, self.bucket = cluster, postgres, disk, bucket
        self.workers = [f"worker-{number}" for number in range(1, workers + 1)]
        self.ports = {"api-1": free_port(), "api-2": free_port()}
        self.relays = ["relay-1", "relay-2"]
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.publish = publisher(make_celery(cluster.settings))
        self.away: dict[str, tuple[float, Callable[[], object]]] = {}
        """What is frozen, cut off or full: until when, and what brings it back."""

    @property
    def urls(self) -> list[str]:
        """Of the processes of the API."""
        return [f"http://{self.cluster.settings.host}:{port}" for port in self.ports.values()]

    @property
    def can_read(self) -> bool:
        """Whether the database can be asked without a wait."""
        return "database" not in self.away

    def start(self, *names: str) -> None:
        """All, or some."""
        environment = self.bucket.environment if self.bucket is not None else None
        for name in names or (*self.ports, *self.relays, *self.workers):
            port = self.ports.get(name, self.cluster.settings.port)
            self.cluster.start_unwaited(name, environment=environment, port=port)

    def one(self) -> None:
        """A random fault, on something that runs."""
        faults: list[Callable[[], str | None]] = [
            self.kill_worker,
            self.kill_runner,
            self.kill_api,
            self.kill_relay,
            self.stop_worker,
            self.freeze_worker,
            self.broker_away,
            self.broker_hangs,
            self.wipe_broker,
            self.send_again,
        ]
        if self.postgres is not None:
            faults += [self.restart_database, self.database_hangs]
        if self.disk is not None:
            faults.append(self.fill_disk)
        # Of what can only be done in some moments, there are more chances.
        faults += [self.store_away, self.store_hangs] if self.bucket is not None else [self.damage_file] * 3
        # Not each is possible at any moment: there may be no runner to kill.
        while (name := self.random.choice(faults)()) is None:
            continue
        self.counts[name] += 1

    def mend(self, *, at_once: bool = False) -> None:
        """What somebody or something would do after a while."""
        for what, (until, bring_back) in list(self.away.items()):
            if at_once or time.monotonic() > until:
                del self.away[what]
                bring_back()
        if at_once:
            return
        for name, process in list(self.cluster.processes.items()):
            if process.poll() is not None:
                self.cluster.kill(name)
                self.start(name)

    def _until(self, what: str, bring_back: Callable[[], object], shortest: float, longest: float) -> None:
        self.away[what] = time.monotonic() + self.random.uniform(shortest, longest), bring_back

    def _hold(self, what: str, held: AbstractContextManager[object], shortest: float, longest: float) -> None:
        """Enter a context now, and leave it later."""
        held.__enter__()
        self._until(what, lambda: held.__exit__(None, None, None), shortest, longest)

    # --- processes -----------------------------------------------------------------------------------------------

    def free_worker(self) -> str | None:
        free = [name for name in self.workers if name not in self.away]
        return self.random.choice(free) if free else None

    def kill_worker(self) -> str | None:
        return self._signal(self.free_worker(), signal.SIGKILL, "kill -9 of a worker")

    def stop_worker(self) -> str | None:
        return self._signal(self.free_worker(), signal.SIGTERM, "SIGTERM of a worker")

    def kill_api(self) -> str | None:
        return self._signal(self.random.choice([*self.ports]), signal.SIGKILL, "kill -9 of an API process")

    def kill_relay(self) -> str | None:
        return self._signal(self.random.choice(self.relays), signal.SIGKILL, "kill -9 of a relay")

    def _signal(self, name: str | None, number: signal.Signals, what: str) -> str | None:
        if name is None or self.cluster.processes[name].poll() is not None:
            return None
        self.cluster.signal(name, number)
        return what

    def kill_runner(self) -> str | None:
        name = self.free_worker()
        if name is None or self.cluster.processes[name].poll() is not None:
            return None
        runners = self.cluster.runners(name)
        for runner in runners:
            runner.kill()
        return "kill -9 of a runner" if runners else None

    def freeze_worker(self) -> str | None:
        # One at a time: somebody has to work.
        name = self.free_worker()
        if name is None or self.cluster.processes[name].poll() is not None or set(self.workers) & set(self.away):
            return None
        self.cluster.freeze(name)
        lease = self.cluster.settings.lease_seconds
        self._until(name, lambda: self.cluster.signal(name, signal.SIGCONT), lease + 1, lease + 4)
        return "a worker frozen past its lease"

    # --- broker and database -------------------------------------------------------------------------------------

    def broker_away(self) -> str | None:
        if "broker" in self.away:
            return None
        self.cluster.broker.stop()
        self._until("broker", self.cluster.broker.start, 1, 8)
        return "broker stopped for some seconds, and empty after"

    def broker_hangs(self) -> str | None:
        if "broker" in self.away:
            return None
        self._hold("broker", self.cluster.broker.frozen(), 2, 12)
        return "broker frozen for some seconds"

    def wipe_broker(self) -> str | None:
        if "broker" in self.away:
            return None
        self.cluster.broker.wipe()
        return "broker wiped"

    def restart_database(self) -> str | None:
        assert self.postgres is not None
        if not self.can_read:
            return None
        self.postgres.stop()
        time.sleep(self.random.uniform(0, 2))
        self.postgres.start()
        return "database restarted"

    def database_hangs(self) -> str | None:
        assert self.postgres is not None
        if not self.can_read:
            return None
        self._hold("database", self.postgres.frozen(), 2, 12)
        return "database frozen for some seconds"

    def send_again(self) -> str | None:
        if not self.can_read or "broker" in self.away:
            return None
        with self.cluster.database.reading() as session:
            known = session.scalars(select(Job.id)).all()
        try:
            self.publish(self.random.choice(known))
        except (OSError, IndexError):
            return None
        return "a message sent again, of whatever job"

    # --- files ---------------------------------------------------------------------------------------------------

    def fill_disk(self) -> str | None:
        if self.disk is None or "disk" in self.away:
            return None
        filler = self.disk / "filler"
        with filler.open("wb") as file:
            system = os.statvfs(self.disk)
            try:
                os.posix_fallocate(file.fileno(), 0, max(1, system.f_bavail * system.f_frsize))
            except OSError:
                # A run has written something since.
                filler.unlink()
                return None
        self._until("disk", filler.unlink, 2, 10)
        return "disk full for some seconds"

    def damage_file(self) -> str | None:
        """A bit of what a running job saved last flips, and its worker is killed: the next attempt meets it."""
        if not self.can_read:
            return None
        store = open_store(self.cluster.settings)
        assert isinstance(store, FolderStore)
        with self.cluster.database.reading() as session:
            saved = (
                select(JobFile.sha256, Job.worker)
                .join(Job, JobFile.job_id == Job.id)
                .where(Job.state == JobState.RUNNING, JobFile.kind.in_((FileKind.RESUME, FileKind.BLOCK)))
            )
            found = session.execute(saved.order_by(JobFile.id.desc())).all()
        numbers = {name: self.cluster.processes[name].pid for name in self.workers if name not in self.away}
        for sha256, worker in found:
            for name, number in numbers.items():
                if str(worker).endswith(f"/{number}") and self._flip(self._path(sha256)):
                    return self._signal(
                        name, signal.SIGKILL, "a bit flipped in a saved file, and kill -9 of its worker"
                    )
        return None

    def _path(self, sha256: str) -> Path:
        return self.cluster.settings.data_dir / "artifacts" / sha256[:2] / sha256

    def _flip(self, path: Path) -> bool:
        try:
            with path.open("r+b") as file:
                file.seek(self.random.randrange(path.stat().st_size))
                [byte] = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1 << self.random.randrange(8)]))
        except FileNotFoundError:
            return False
        return True

    def store_away(self) -> str | None:
        assert self.bucket is not None
        if "store" in self.away:
            return None
        self.bucket.way.cut()
        self._until("store", self.bucket.way.open, 1, 8)
        return "S3 store cut off for some seconds"

    def store_hangs(self) -> str | None:
        assert self.bucket is not None
        if "store" in self.away:
            return None
        self._hold("store", self.bucket.server.frozen(), 2, 12)
        return "S3 store frozen for some seconds"


class Bucket:
    """An S3 server, and the way to it."""

    url = f"s3://{_BUCKET}/chaos"

    def __init__(self, server: ObjectServer, way: Way) -> None:
        self.server, self.way = server, way
        self.environment = server.environment | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{way.port}"}


@contextmanager
def bucket() -> Iterator[Bucket]:
    with object_server() as server, way_to(server.port) as way:
        server.make_bucket(_BUCKET)
        made = Bucket(server, way)
        os.environ.update(made.environment)
        yield made


# --- a disk of its own -------------------------------------------------------------------------------------------


def enter_own_namespace() -> bool:
    """Start this program again where it may mount; whether it is there."""
    if os.environ.get(_IN_OWN_NAMESPACE):
        return True
    # The database's server needs the user that it runs as, and no user may be mapped to another.
    how = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    command = ["unshare", *how, "--mount"]
    probe = "mount -t tmpfs none /mnt"
    try:
        is_possible = subprocess.run([*command, "sh", "-c", probe], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        is_possible = False
    if is_possible:
        os.environ[_IN_OWN_NAMESPACE] = "1"
        os.execvp(command[0], [*command, sys.executable, *sys.argv])
    return False


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
