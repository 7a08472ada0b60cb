"""Tells the service that a worker is there: a row that is renewed while its process lives."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import socket
import subprocess
import threading

from app import workers
from app.artifacts import ArtifactStore
from app.database import DATABASE_AWAY, Database
from app.formatting import size
from app.settings import Settings

_log = logging.getLogger(__name__)

_PROBE_SECONDS = 20


def worker_name() -> str:
    """Unique among living workers: containers have host names of their own."""
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
    while not ended.is_set():
        is_draining = stopping.is_set()
        try:
            found = problem(settings, store)
            if found is not None and known_problem is None:
                _log.warning("no job is taken: %s", found)
            known_problem = found
            with database.writing() as session:
                workers.beat(
                    session,
                    name,
                    host=host,
                    device=device,
                    is_draining=is_draining,
                    problem=found,
                    is_new=is_first,
                )
            is_first = False
        except DATABASE_AWAY as error:
            _log.warning("the database cannot be used (%s); telling of this worker later", error.orig)
        except Exception:  # noqa: BLE001 - logged; this thread must outlive whatever it meets
            _log.exception("this worker could not tell of itself; trying again")
        # A worker that is told to stop says so at once.
        (ended if is_draining else stopping).wait(settings.heartbeat_seconds)
    try:
        with database.writing() as session:
            workers.leave(session, name)
    except DATABASE_AWAY:
        _log.warning("the database cannot be used; this worker's row is left to the cleanup")


def problem(settings: Settings, store: ArtifactStore) -> str | None:
    """Why this worker takes no job: each would fail, one after the other, for want of room, or have to wait."""
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
    """The GPU that runs will use, or the processor; found without torch, which a worker never loads.

    `CUDA_VISIBLE_DEVICES` picks the GPU, as it does for a run.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is not None and visible not in ("", "-1"):
        which = [] if visible is None else ["-i", visible.split(",")[0]]
        command = [nvidia_smi, "--query-gpu=name,memory.total", "--format=csv,noheader", *which]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            _log.warning("nvidia-smi does not tell of a GPU (%s)", error)
        else:
            lines = found.stdout.splitlines()
            if lines:
                return lines[0].strip()[:200]
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
