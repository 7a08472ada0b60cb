"""Files kept by content: checkpoints, weights and certificates under their sha256, logs under their job."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.errors import NotFound
from app.job_log import JobLog
from gkl.errors import NoSpaceLeft

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INCOMING = ".incoming-"
_ABANDONED_SECONDS = 3600
_LOCK = ".lock"
_LOCK_SECONDS = 10


@dataclass(frozen=True)
class StoredFile:
    sha256: str
    size_bytes: int


class Incoming:
    """Hashes while it writes."""

    def __init__(self, path: Path, file: BinaryIO, final_path: Callable[[str], Path]) -> None:
        self.path = path
        self._file, self._final_path = file, final_path
        self._digest, self._size = hashlib.sha256(), 0

    def write(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._size += self._file.write(chunk)

    @property
    def size_bytes(self) -> int:
        return self._size

    def flush(self) -> None:
        """So that what was written can be read at `path`."""
        self._file.flush()

    def keep(self) -> StoredFile:
        self._file.flush()
        os.fsync(self._file.fileno())
        _place(self.path, self._final_path(self._digest.hexdigest()))
        return StoredFile(self._digest.hexdigest(), self._size)


def _place(temporary: Path, path: Path) -> None:
    """Give a whole file of the store its name."""
    path.parent.mkdir(exist_ok=True)
    # mkstemp's files are their maker's alone; API and workers may be different users of one folder.
    temporary.chmod(0o644)
    # With or without the lock: a frozen process must not keep others from storing.
    with _locked(path.parent.parent, fcntl.LOCK_SH):
        # Even where it is there already: the name must be young, or `remove_unnamed` could take it before its row is
        # committed.
        os.utime(temporary)
        temporary.replace(path)
    for folder in (path.parent, path.parent.parent):
        _sync_directory(folder)


class ArtifactStore:
    """A folder in which equal files are stored once. Names are made here, never by a caller."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "artifacts"
        self._logs = data_dir / "logs" / "jobs"

    def put(self, source: Path) -> StoredFile:
        """Copy a file in."""
        with self.incoming() as incoming, source.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                incoming.write(chunk)
            return incoming.keep()

    def adopt(self, source: Path) -> StoredFile:
        """Take in a file of the data directory without copying it. It keeps its own name too, and must not be written
        any more."""
        digest, size = hashlib.sha256(), 0
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
            os.fsync(file.fileno())
        self._root.mkdir(parents=True, exist_ok=True)
        temporary = self._root / f"{_INCOMING}{secrets.token_hex(16)}"
        try:
            os.link(source, temporary)
            _place(temporary, self._path(digest.hexdigest()))
        finally:
            temporary.unlink(missing_ok=True)
        return StoredFile(digest.hexdigest(), size)

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """A file that is being received; it appears under its name only when it is whole and kept.

        Raises:
            NoSpaceLeft: the disk is full; nothing half-written is left.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=_INCOMING, dir=self._root)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    yield Incoming(Path(name), file, self._path)
            finally:
                Path(name).unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoSpaceLeft(
                "the disk of the service's data directory is full, so a file could not be kept; make room there and "
                "retry the job: it goes on from what it saved before"
            ) from error

    def holds(self, sha256: str) -> bool:
        return self._path(sha256).is_file()

    def path(self, sha256: str) -> Path:
        """Where the content with this hash lies.

        Raises:
            NotFound: if it is not stored.
        """
        path = self._path(sha256)
        if not path.is_file():
            raise NotFound(f"no file with sha256 {sha256} is stored here")
        return path

    def fetch(self, sha256: str, target: Path) -> None:
        """Copy stored content to `target`."""
        shutil.copyfile(self.path(sha256), target)

    def remove_unnamed(self, is_named: Callable[[list[str]], set[str]], *, older_than_seconds: float) -> int:
        """Remove content that no row names; returns how many files.

        A file is stored before the row that names it is committed, so young ones are left alone. This is the only
        way in which content goes: a writer that removed its own could take it from another that has just stored
        the same bytes.

        Args:
            is_named: of some hashes, those that rows name.
            older_than_seconds: longer than any transaction that follows a `put` may take.
        """
        removed, now = 0, self.now()
        before = now - older_than_seconds
        for path in self._root.glob(f"{_INCOMING}*"):
            # Left by a writer that was killed; one that lives has written something since.
            if _is_older(path, now - _ABANDONED_SECONDS):
                path.unlink(missing_ok=True)
        for folder in self._root.glob("[0-9a-f][0-9a-f]"):
            old = {path.name: path for path in folder.iterdir() if _is_older(path, before)}
            named = is_named(sorted(old)) if old else set()
            for name in old.keys() - named:
                with _locked(self._root, fcntl.LOCK_EX) as is_locked:
                    if not is_locked:
                        # The next cleanup goes on.
                        return removed
                    # Stored once more in this moment, it is young again.
                    if _is_older(old[name], before):
                        old[name].unlink(missing_ok=True)
                        removed += 1
        return removed

    def now(self) -> float:
        """The clock of the disk, by which the ages of its files are judged: hosts that share it may disagree."""
        self._root.mkdir(parents=True, exist_ok=True)
        lock = self._root / _LOCK
        lock.touch()
        return lock.stat().st_mtime

    def job_log(self, job_id: int) -> JobLog:
        """The log of a job's runs."""
        return JobLog(self._logs / f"{job_id}.log")

    def job_logs(self) -> list[Path]:
        """The files of all logs, each named `<job id>.log`."""
        return [path for path in self._logs.glob("*.log") if path.stem.isdecimal()]

    def _path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"not a sha256: {sha256!r}")
        return self._root / sha256[:2] / sha256


def _is_older(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime < moment
    except FileNotFoundError:
        return False


@contextmanager
def _locked(root: Path, how: int) -> Iterator[bool]:
    """Whether the lock was had: it is held for microseconds, unless by a process that is frozen."""
    # Both ways: NFS gives a shared lock only to who may read, an exclusive one to who may write.
    with (root / _LOCK).open("a+") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        is_locked = False
        while not is_locked and time.monotonic() < deadline:
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
                is_locked = True
            except BlockingIOError:
                time.sleep(0.01)
        if not is_locked:
            _log.warning("the lock of the artifact store is held for more than %d seconds", _LOCK_SECONDS)
        yield is_locked


def _sync_directory(folder: Path) -> None:
    """A new name is on disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
