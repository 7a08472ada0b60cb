"""The artifact store in a folder."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.store.base import (
    CHUNK_BYTES,
    INCOMING,
    LOCK,
    PROBE_BYTES,
    ArtifactStore,
    StoredFile,
    absent,
    checked,
    copy_whole,
    damaged,
    disk_now,
    hash_of,
    is_older,
    log,
)

_LOCK_SECONDS = 10


class FolderStore(ArtifactStore):
    """Stores artifacts in a folder. Before `put` returns, the file and its name are written to the disk (fsync)."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "artifacts"
        # Beside the folder, not in it: a copy made while the service runs meets no temporary files that disappear.
        super().__init__(data_dir / "incoming")

    def put(self, source: Path) -> StoredFile:
        with self.incoming() as incoming, source.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                incoming.write(chunk)
            return incoming.keep()

    def adopt(self, source: Path) -> StoredFile:
        """Store a file by a hard link; the file also keeps its old name."""
        with source.open("rb") as file:
            stored = hash_of(file)
            os.fsync(file.fileno())
        self._incoming_dir.mkdir(parents=True, exist_ok=True)
        temporary = self._incoming_dir / f"{INCOMING}{secrets.token_hex(16)}"
        try:
            os.link(source, temporary)
            self._place(temporary, stored)
        finally:
            temporary.unlink(missing_ok=True)
        return stored

    def holds(self, sha256: str) -> bool:
        return self._path(sha256).is_file()

    def path(self, sha256: str) -> Path:
        path = self._path(sha256)
        try:
            is_whole = self._is_whole(path, sha256)
        except FileNotFoundError:
            raise absent(sha256) from None
        if not is_whole:
            raise damaged(sha256)
        return path

    def fetch(self, sha256: str, target: Path) -> None:
        path = self._path(sha256)
        if not path.is_file():
            raise absent(sha256)
        if not copy_whole(path, target, sha256):
            raise damaged(sha256)

    def problem(self) -> str | None:
        """Check by writing a small file, since the disk may be full or read-only."""
        if not self._root.parent.is_dir():
            return "does not exist"
        try:
            self._incoming_dir.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(prefix=INCOMING, dir=self._incoming_dir) as file:
                file.write(bytes(PROBE_BYTES))
                file.flush()
        except OSError as error:
            return f"cannot be written ({error.strerror})"
        return None

    def remove_abandoned(self) -> None:
        super().remove_abandoned()
        # Earlier versions received files in this folder, and files from another disk are copied into it.
        self._remove_abandoned_in(self._root)

    def _place(self, temporary: Path, stored: StoredFile) -> None:
        path = self._path(stored.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._on_its_disk(temporary)
        # mkstemp's files are readable by their owner only; API and workers may run as different users.
        temporary.chmod(0o644)
        # Continue even if the lock could not be taken: a frozen process must not prevent others from storing files.
        with _locked(self._root, fcntl.LOCK_SH):
            # Replace an existing file too: its time must be new, or `remove_unnamed` could remove it before its row is
            # committed.
            os.utime(temporary)
            temporary.replace(path)
        for folder in (path.parent, self._root):
            _sync_directory(folder)

    def _on_its_disk(self, temporary: Path) -> Path:
        """The file itself, or a copy on the folder's disk if that is another disk: a rename is atomic only on one
        disk."""
        if temporary.stat().st_dev == self._root.stat().st_dev:
            return temporary
        near = self._root / f"{INCOMING}{secrets.token_hex(16)}"
        try:
            with temporary.open("rb") as read, near.open("wb") as written:
                shutil.copyfileobj(read, written, CHUNK_BYTES)
                written.flush()
                os.fsync(written.fileno())
        except BaseException:
            near.unlink(missing_ok=True)
            raise
        return near

    def _remove_unnamed(self, is_named: Callable[[list[str]], set[str]], older_than_seconds: float) -> int:
        removed, before = 0, disk_now(self._root) - older_than_seconds
        for folder in self._root.glob("[0-9a-f][0-9a-f]"):
            old = {path.name: path for path in folder.iterdir() if is_older(path, before)}
            named = is_named(sorted(old)) if old else set()
            for name in old.keys() - named:
                is_gone = self._remove_old(old[name], before)
                if is_gone is None:
                    # The lock is held; the next cleanup continues.
                    return removed
                removed += is_gone
        return removed

    def _remove_old(self, path: Path, before: float, *, within_seconds: float = _LOCK_SECONDS) -> bool | None:
        """Remove a file if it is still old. Returns whether it was removed; None if the lock is held by others, such
        as a backup with a shared lock."""
        with _locked(self._root, fcntl.LOCK_EX, within_seconds=within_seconds) as is_locked:
            if not is_locked:
                return None
            # If the same content was stored again meanwhile, the file is young.
            if not is_older(path, before):
                return False
            path.unlink(missing_ok=True)
            return True

    def discard(
        self, hashes: Collection[str], is_named: Callable[[list[str]], set[str]], *, older_than_seconds: float
    ) -> set[str]:
        before = disk_now(self._root) - older_than_seconds
        old = sorted(sha256 for sha256 in hashes if is_older(self._path(sha256), before))
        done = is_named(old) if old else set()
        for sha256 in old:
            if sha256 not in done and self._remove_old(self._path(sha256), before, within_seconds=0):
                done.add(sha256)
        return done

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / checked(sha256)


@contextmanager
def _locked(root: Path, how: int, *, within_seconds: float = _LOCK_SECONDS) -> Iterator[bool]:
    """Try to take the store's lock; the value is whether it was taken.

    Normally the lock is held for microseconds only, but a frozen process may hold it for longer.
    """
    # Open for reading and writing: on NFS a shared lock needs the first, an exclusive lock the second.
    with (root / LOCK).open("a+") as file:
        deadline = time.monotonic() + within_seconds
        is_locked = False
        while not is_locked:
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
                is_locked = True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    break
                time.sleep(0.01)
        if not is_locked and within_seconds:
            log.warning("the lock of the artifact store is held for more than %d seconds", within_seconds)
        yield is_locked


def _sync_directory(folder: Path) -> None:
    """Write a folder's entries to the disk, so that new names in it survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
