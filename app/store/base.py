"""Files kept by content: checkpoints, weights and certificates under their sha256.

ArtifactStore
├── FolderStore      a folder of the data directory, shared by the processes of one host
└── ObjectStore      app.object_store: a bucket, shared by hosts that share no disk
"""

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
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.errors import NotFound
from app.settings import Settings
from gkl.errors import NoSpaceLeft

_log = logging.getLogger(__name__)

CHUNK_BYTES = 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
INCOMING = ".incoming-"
_ABANDONED_SECONDS = 3600
_LOCK = ".lock"
_LOCK_SECONDS = 10
_REMEMBERED = 10_000
_PROBE_BYTES = 4096


@dataclass(frozen=True)
class StoredFile:
    sha256: str
    size_bytes: int


class Incoming:
    """Hashes while it writes."""

    def __init__(self, path: Path, file: BinaryIO, place: Callable[[Path, StoredFile], None]) -> None:
        self.path = path
        self._file, self._place = file, place
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
        stored = StoredFile(self._digest.hexdigest(), self._size)
        self._place(self.path, stored)
        return stored


class ArtifactStore(ABC):
    """Where equal files are stored once. Names are made here, never by a caller.

    A file is stored before the row that names it is committed. So `remove_unnamed` leaves young files alone, and is
    the only way in which content goes: a writer that removed its own could take it from another that has just stored
    the same bytes.

    Any method may raise `StoreAway`.
    """

    def __init__(self, incoming_dir: Path) -> None:
        self._incoming_dir = incoming_dir
        self._whole: dict[Path, tuple[int, int, int]] = {}
        """Files whose content this process has checked, as they were then."""

    @abstractmethod
    def put(self, source: Path) -> StoredFile:
        """Store a file that nobody writes any more.

        Raises:
            FileNotFoundError: it is gone.
            NoSpaceLeft: there is no room for it; nothing half-written is left.
        """

    @abstractmethod
    def adopt(self, source: Path) -> StoredFile:
        """As `put`, of a file in the data directory: without copying it, where that can be."""

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """A file that is being received; it is stored only when it is whole and kept.

        Raises:
            NoSpaceLeft: the disk is full; nothing half-written is left.
        """
        try:
            self._incoming_dir.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=INCOMING, dir=self._incoming_dir)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    yield Incoming(Path(name), file, self._place)
            finally:
                Path(name).unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoSpaceLeft(
                "the disk of the service's data directory is full, so a file could not be kept; make room there and "
                "retry the job: it goes on from what it saved before"
            ) from error

    @abstractmethod
    def holds(self, sha256: str) -> bool:
        """Whether content with this hash is stored."""

    @abstractmethod
    def path(self, sha256: str) -> Path:
        """Where the content with this hash can be read on this host's disk.

        Raises:
            NotFound: if it is not stored, or damaged.
        """

    @abstractmethod
    def fetch(self, sha256: str, target: Path) -> None:
        """Copy stored content to `target`.

        Raises:
            NotFound: if it is not stored, or damaged; nothing is left at `target`.
        """

    def remove_unnamed(self, is_named: Callable[[list[str]], set[str]], *, older_than_seconds: float) -> int:
        """Remove content that no row names; returns how many files.

        Args:
            is_named: of some hashes, those that rows name.
            older_than_seconds: longer than any transaction that follows a `put` may take.
        """
        self.remove_abandoned()
        return self._remove_unnamed(is_named, older_than_seconds)

    @abstractmethod
    def discard(
        self, hashes: Collection[str], is_named: Callable[[list[str]], set[str]], *, older_than_seconds: float
    ) -> set[str]:
        """Remove, ahead of `remove_unnamed`, what this process has stored and nothing needs any more.

        Args:
            hashes: of what.
            is_named: as for `remove_unnamed`.
            older_than_seconds: as for `remove_unnamed`.

        Returns:
            Those that are not to be asked for again: gone, or named by others.
        """

    def remove_abandoned(self) -> None:
        """Remove what writers of this host left that were killed; one that lives has written something since."""
        self._remove_abandoned_in(self._incoming_dir)

    @staticmethod
    def _remove_abandoned_in(folder: Path) -> None:
        before = disk_now(folder) - _ABANDONED_SECONDS
        for path in folder.glob(f"{INCOMING}*"):
            if _is_older(path, before):
                path.unlink(missing_ok=True)

    @abstractmethod
    def problem(self) -> str | None:
        """Why nothing can be stored now; None if nothing is in the way."""

    def _is_whole(self, path: Path, sha256: str) -> bool:
        """Whether a file holds what it is named after. Read once, and again when the file has changed."""
        if self._is_checked(path):
            return True
        stat = path.stat()
        seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        with path.open("rb") as file:
            is_whole = hash_of(file).sha256 == sha256
        if is_whole:
            if len(self._whole) >= _REMEMBERED:
                self._whole.clear()
            self._whole[path] = seen
        return is_whole

    def _is_checked(self, path: Path) -> bool:
        """Whether this process has read it before and found it whole."""
        stat = path.stat()
        return self._whole.get(path) == (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    @abstractmethod
    def _place(self, temporary: Path, stored: StoredFile) -> None:
        """Give a whole file its name."""

    @abstractmethod
    def _remove_unnamed(self, is_named: Callable[[list[str]], set[str]], older_than_seconds: float) -> int: ...


def open_store(settings: Settings, *, is_hasty: bool = False) -> ArtifactStore:
    """The store that the settings name. Does not connect.

    Args:
        settings: of the service.
        is_hasty: for whoever answers requests: a store elsewhere that says nothing is away after seconds.
    """
    if not settings.store_url:
        return FolderStore(settings.data_dir)
    from app.object_store import ObjectStore  # noqa: PLC0415 - a folder needs nothing of it

    return ObjectStore(
        settings.store_url,
        settings.data_dir.resolve(),
        cache_bytes=settings.store_cache_bytes,
        is_hasty=is_hasty,
    )


class FolderStore(ArtifactStore):
    """A folder. Files are on disk, and so are their names, before `put` returns."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "artifacts"
        # Beside the folder: whoever copies it while the service runs meets no file that is gone again.
        super().__init__(data_dir / "incoming")

    def put(self, source: Path) -> StoredFile:
        with self.incoming() as incoming, source.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                incoming.write(chunk)
            return incoming.keep()

    def adopt(self, source: Path) -> StoredFile:
        """It keeps its own name too."""
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
        """Asked by writing: a disk may be full, or only be read."""
        if not self._root.parent.is_dir():
            return "does not exist"
        try:
            self._incoming_dir.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(prefix=INCOMING, dir=self._incoming_dir) as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
        except OSError as error:
            return f"cannot be written ({error.strerror})"
        return None

    def remove_abandoned(self) -> None:
        super().remove_abandoned()
        # Where an earlier version received files, and where they come to from another disk.
        self._remove_abandoned_in(self._root)

    def _place(self, temporary: Path, stored: StoredFile) -> None:
        path = self._path(stored.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._on_its_disk(temporary)
        # mkstemp's files are their maker's alone; API and workers may be different users of one folder.
        temporary.chmod(0o644)
        # With or without the lock: a frozen process must not keep others from storing.
        with _locked(self._root, fcntl.LOCK_SH):
            # Even where it is there already: the name must be young, or `remove_unnamed` could take it before its row
            # is committed.
            os.utime(temporary)
            temporary.replace(path)
        for folder in (path.parent, self._root):
            _sync_directory(folder)

    def _on_its_disk(self, temporary: Path) -> Path:
        """The file, or a copy where the folder is a disk of its own, on which alone it can get its name at once."""
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
            old = {path.name: path for path in folder.iterdir() if _is_older(path, before)}
            named = is_named(sorted(old)) if old else set()
            for name in old.keys() - named:
                is_gone = self._remove_old(old[name], before)
                if is_gone is None:
                    # The next cleanup goes on.
                    return removed
                removed += is_gone
        return removed

    def _remove_old(self, path: Path, before: float, *, within_seconds: float = _LOCK_SECONDS) -> bool | None:
        """Whether it is removed; None if that cannot be told now, as while the folder is copied under a shared lock."""
        with _locked(self._root, fcntl.LOCK_EX, within_seconds=within_seconds) as is_locked:
            if not is_locked:
                return None
            # Stored once more in this moment, it is young again.
            if not _is_older(path, before):
                return False
            path.unlink(missing_ok=True)
            return True

    def discard(
        self, hashes: Collection[str], is_named: Callable[[list[str]], set[str]], *, older_than_seconds: float
    ) -> set[str]:
        before = disk_now(self._root) - older_than_seconds
        old = sorted(sha256 for sha256 in hashes if _is_older(self._path(sha256), before))
        done = is_named(old) if old else set()
        for sha256 in old:
            if sha256 not in done and self._remove_old(self._path(sha256), before, within_seconds=0):
                done.add(sha256)
        return done

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / checked(sha256)


def checked(sha256: str) -> str:
    """
    Raises:
        ValueError: it is none, but perhaps a path.
    """
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"not a sha256: {sha256!r}")
    return sha256


def hash_of(file: BinaryIO) -> StoredFile:
    """What a file would be stored as, read from where it stands."""
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return StoredFile(digest.hexdigest(), size)


def copy_whole(source: Path, target: Path, sha256: str) -> bool:
    """Copy a file that is to have this hash. False if it has another; nothing is left at `target` then."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as written:
        while chunk := read.read(CHUNK_BYTES):
            digest.update(chunk)
            written.write(chunk)
    is_whole = digest.hexdigest() == sha256
    if not is_whole:
        target.unlink()
    return is_whole


def absent(sha256: str) -> NotFound:
    return NotFound(f"no file with sha256 {sha256} is stored here")


def damaged(sha256: str) -> NotFound:
    """What is no longer what it was is as good as absent."""
    _log.error("the stored file with sha256 %s is damaged", sha256)
    return NotFound(f"the stored file with sha256 {sha256} is damaged; restore it from a backup, or send it again")


def disk_now(folder: Path) -> float:
    """The clock of a folder's disk, by which the ages of its files are judged: hosts that share it may disagree."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / _LOCK
    lock.touch()
    return lock.stat().st_mtime


def _is_older(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime < moment
    except FileNotFoundError:
        return False


@contextmanager
def _locked(root: Path, how: int, *, within_seconds: float = _LOCK_SECONDS) -> Iterator[bool]:
    """Whether the lock was had: it is held for microseconds, unless by a process that is frozen."""
    # Both ways: NFS gives a shared lock only to who may read, an exclusive one to who may write.
    with (root / _LOCK).open("a+") as file:
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
            _log.warning("the lock of the artifact store is held for more than %d seconds", within_seconds)
        yield is_locked


def _sync_directory(folder: Path) -> None:
    """A new name is on disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
