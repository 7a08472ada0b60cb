"""A worker's heartbeat: a database row with its device, its data sets and its load, renewed while the worker runs."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path

from app.core.formatting import size
from app.core.settings import Settings
from app.db.database import DATABASE_AWAY, Database
from app.jobs import workers
from app.jobs.workers import Seen
from app.store import ArtifactStore
from gkl.answers import LoadView
from gkl.catalog.on_disk import datasets_here, published_here

_log = logging.getLogger(__name__)

_PROBE_SECONDS = 20


def worker_name() -> str:
    """This worker's name, unique among running workers, since each container has its own host name."""
    return f"{socket.gethostname()}/{os.getpid()}"


def announce(
    settings: Settings,
    database: Database,
    store: ArtifactStore,
    name: str,
    *,
    stopping: threading.Event,
    ended: threading.Event,
) -> None:
    """Renew the worker's row with each heartbeat until `ended`; then remove it."""
    device = describe_device()
    host = socket.gethostname()
    is_first, known_problem = True, None
    # In a separate thread, so that a hanging disk or driver does not delay the heartbeat.
    look = Look(settings, ended)
    threading.Thread(target=look.repeat, name="look", daemon=True).start()
    while not ended.is_set():
        is_draining = stopping.is_set()
        try:
            found = problem(settings, store)
            if found is not None and known_problem is None:
                _log.warning("no job is taken: %s", found)
            known_problem = found
            with database.writing() as session:
                workers.record_heartbeat(
                    session,
                    name,
                    host=host,
                    device=device,
                    is_draining=is_draining,
                    problem=found,
                    is_new=is_first,
                    seen=look.seen,
                )
            is_first = False
        except DATABASE_AWAY as error:
            _log.warning("the database cannot be used (%s); telling of this worker later", error.orig)
        except Exception:  # noqa: BLE001 - logged; this thread must continue after any error
            _log.exception("this worker could not tell of itself; trying again")
        # When the worker begins to stop, its row says so at once.
        (ended if is_draining else stopping).wait(settings.heartbeat_seconds)
    try:
        with database.writing() as session:
            workers.remove(session, name)
    except DATABASE_AWAY:
        _log.warning("the database cannot be used; this worker's row is left to the cleanup")


class Look:
    """Looks up, as often as the heartbeat, which data this worker has on its disk and how busy its device is."""

    def __init__(self, settings: Settings, ended: threading.Event) -> None:
        self._settings, self._ended = settings, ended
        self._times = _processor_times()
        self.seen = Seen()

    def repeat(self) -> None:
        while not self._ended.is_set():
            try:
                self.seen = self._once()
            except Exception:  # noqa: BLE001 - logged; the disk or the driver may be in any state
                _log.exception("this worker could not look at its disk and its device; trying again")
            self._ended.wait(self._settings.heartbeat_seconds)

    def _once(self) -> Seen:
        return Seen(
            datasets=datasets_here(self._settings.effective_datasets_dir),
            published=published_here(self._settings.effective_models_dir),
            load=self._load(),
        )

    def _load(self) -> LoadView:
        before, self._times = self._times, _processor_times()
        return gpu_load() or processor_load(before, self._times, Path("/proc/meminfo").read_text(encoding="ascii"))


def problem(settings: Settings, store: ArtifactStore) -> str | None:
    """Why this worker claims no job (its disk is full, or the store is down); None if it can."""
    disk, elsewhere = _disk_problem(settings), store.problem()
    return disk or (None if elsewhere is None else f"the artifact store {elsewhere}")


def _disk_problem(settings: Settings) -> str | None:
    try:
        free = shutil.disk_usage(settings.data_dir).free
    except OSError as error:
        return f"its data directory cannot be used ({error.strerror})"
    if free < settings.min_free_bytes:
        return f"its data directory has {size(free)} of room left; make some, and it goes on"
    return None


def describe_device() -> str:
    """The GPU that runs will use, or the CPU; found with nvidia-smi, because a worker never loads torch.

    `CUDA_VISIBLE_DEVICES` selects the GPU, as it does for a run.
    """
    return _of_gpu("name,memory.total") or f"CPU ({platform.machine()}, {os.cpu_count()} cores)"


def gpu_load() -> LoadView | None:
    """The load of the GPU that this worker's runs use; None without a GPU."""
    line = _of_gpu("utilization.gpu,memory.used,memory.total", "nounits")
    return None if line is None else parsed_gpu_load(line)


def parsed_gpu_load(line: str) -> LoadView | None:
    """Parse a line of nvidia-smi's CSV without units: utilization in percent, used and total memory in MiB.

    >>> parsed_gpu_load("37, 12034, 143771").busy
    0.37

    nvidia-smi reports no utilization for a part of a GPU (MIG), and with some drivers no memory:

    >>> parsed_gpu_load("[N/A], 1024, 20096").busy, parsed_gpu_load("[N/A], [N/A], [N/A]")
    (None, None)
    """
    busy, *memory = (part.strip() for part in line.split(","))
    if len(memory) != 2 or not all(part.isdecimal() for part in memory):
        return None
    used, total = (int(part) * 1024**2 for part in memory)
    return LoadView(
        is_gpu=True,
        busy=int(busy) / 100 if busy.isdecimal() else None,
        memory_bytes=used,
        memory_total_bytes=total,
    )


def processor_load(before: tuple[int, int], now: tuple[int, int], meminfo: str) -> LoadView:
    """The CPU's load between two measurements, and the used main memory.

    Args:
        before: busy ticks and all ticks of all cores at the first measurement.
        now: the same at the second.
        meminfo: the content of /proc/meminfo.

    >>> load = processor_load((100, 1000), (160, 1200), "MemTotal: 2048 kB\\nMemAvailable: 512 kB\\n")
    >>> load.busy, load.memory_bytes
    (0.3, 1572864)
    """
    sizes = {name: int(kilobytes) * 1024 for name, kilobytes in re.findall(r"(\w+):\s*(\d+) kB", meminfo)}
    passed = now[1] - before[1]
    return LoadView(
        is_gpu=False,
        busy=max(0.0, min(1.0, (now[0] - before[0]) / passed)) if passed > 0 else None,
        memory_bytes=sizes["MemTotal"] - sizes["MemAvailable"],
        memory_total_bytes=sizes["MemTotal"],
    )


def _processor_times() -> tuple[int, int]:
    """Busy ticks and all ticks of all cores since the host started."""
    user, nice, system, idle, waiting, *rest = map(
        int, Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
    )
    busy = user + nice + system + sum(rest)
    return busy, busy + idle + waiting


def _of_gpu(fields: str, *formats: str) -> str | None:
    """The output of nvidia-smi for the GPU that runs will use; None without a GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None or visible in ("", "-1"):
        return None
    which = [] if visible is None else ["-i", visible.split(",")[0]]
    command = [nvidia_smi, f"--query-gpu={fields}", f"--format={','.join(('csv', 'noheader', *formats))}", *which]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("nvidia-smi does not tell of a GPU (%s)", error)
        return None
    lines = found.stdout.splitlines()
    return lines[0].strip()[:200] if lines else None
