"""The interface of artifact stores, which keep checkpoints, weights and certificates under their sha256.

ArtifactStore
├── FolderStore      a folder of the data directory, shared by the processes of one host
└── ObjectStore      app.store.bucket: a bucket, shared by hosts that share no disk
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.core.errors import NotFound
from gkl.errors import NoSpaceLeft
from gkl.files import is_disk_full

log = logging.getLogger(__name__)

CHUNK_BYTES = 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
INCOMING = ".incoming-"
ABANDONED_SECONDS = 3600
LOCK = ".lock"
_REMEMBERED = 10_000
PROBE_BYTES = 4096


@dataclass(frozen=True)
class StoredFile:
    sha256: str
    size_bytes: int


class Incoming:
    """A file that is being received. Its hash is computed while it is written."""

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
        """Make everything that was written readable at `path`."""
        self._file.flush()

    def keep(self) -> StoredFile:
        """Move the complete file into the store."""
        self._file.flush()
        os.fsync(self._file.fileno())
        stored = StoredFile(self._digest.hexdigest(), self._size)
        self._place(self.path, stored)
        return stored


class ArtifactStore(ABC):
    """Stores files by content, so that equal files are stored once. The store makes their names, never a caller.

    A file is stored before the row that names it is committed, so `remove_unnamed` keeps young files. A writer must
    not delete a file that it has stored, since another writer may have just stored the same bytes; it may call
    `discard`, which never removes such a file.

    Every method may raise `StoreAway`, if the store is down.
    """

    def __init__(self, incoming_dir: Path) -> None:
        self._incoming_dir = incoming_dir
        self._whole: dict[Path, tuple[int, int, int]] = {}
        """Files whose content this process has checked, with their inode, modification time and size at that time."""

    @abstractmethod
    def put(self, source: Path) -> StoredFile:
        """Store a complete file.

        Raises:
            FileNotFoundError: the file does not exist any more.
            NoSpaceLeft: the store is full; no partial file is left.
        """

    @abstractmethod
    def adopt(self, source: Path) -> StoredFile:
        """Store a complete file of the data directory like `put`, but without copying it if possible."""

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """Open a file to be received. It is stored only if `Incoming.keep` is called, and deleted otherwise.

        Raises:
            NoSpaceLeft: the disk is full; no partial file is left.
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
            if not is_disk_full(error):
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
        """The path of a file with this content on this host's disk.

        Raises:
            NotFound: the content is not stored, or is damaged.
        """

    @abstractmethod
    def fetch(self, sha256: str, target: Path) -> None:
        """Copy stored content to `target`.

        Raises:
            NotFound: the content is not stored, or is damaged; no file is left at `target`.
        """

    def remove_unnamed(self, is_named: Callable[[list[str]], set[str]], *, older_than_seconds: float) -> int:
        """Remove content that no row names. Returns how many files were removed.

        Args:
            is_named: a function that returns those of some hashes that rows name.
            older_than_seconds: younger files are kept. It must be longer than any transaction that follows a `put`.
        """
        self.remove_abandoned()
        return self._remove_unnamed(is_named, older_than_seconds)

    @abstractmethod
    def discard(
        self, hashes: Collection[str], is_named: Callable[[list[str]], set[str]], *, older_than_seconds: float
    ) -> set[str]:
        """Remove content that this process has stored and that nothing needs any more, before `remove_unnamed` does.

        Args:
            hashes: the content to remove.
            is_named: as for `remove_unnamed`.
            older_than_seconds: as for `remove_unnamed`.

        Returns:
            The hashes that are settled, because their content was removed or is named by a row. The caller may try the
            others again later.
        """

    def remove_abandoned(self) -> None:
        """Remove partial files left by killed writers of this host: those that nobody has written for an hour."""
        self._remove_abandoned_in(self._incoming_dir)

    @staticmethod
    def _remove_abandoned_in(folder: Path) -> None:
        before = disk_now(folder) - ABANDONED_SECONDS
        for path in folder.glob(f"{INCOMING}*"):
            if is_older(path, before):
                path.unlink(missing_ok=True)

    @abstractmethod
    def problem(self) -> str | None:
        """Why no file can be stored now, such as "does not answer"; None if files can be stored."""

    def _is_whole(self, path: Path, sha256: str) -> bool:
        """Whether a file's content has the given hash. A file is read again only if it has changed since."""
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
        """Whether this process has checked the file's content before, and the file has not changed since."""
        stat = path.stat()
        return self._whole.get(path) == (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    @abstractmethod
    def _place(self, temporary: Path, stored: StoredFile) -> None:
        """Move a complete file to its place in the store."""

    @abstractmethod
    def _remove_unnamed(self, is_named: Callable[[list[str]], set[str]], older_than_seconds: float) -> int: ...


def checked(sha256: str) -> str:
    """Return the hash if it is a sha256.

    Raises:
        ValueError: it is not a sha256. It could be a path instead, so it must not become part of one.
    """
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"not a sha256: {sha256!r}")
    return sha256


def hash_of(file: BinaryIO) -> StoredFile:
    """The hash and size of a file's content from its current position on."""
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return StoredFile(digest.hexdigest(), size)


def copy_whole(source: Path, target: Path, sha256: str) -> bool:
    """Copy a file and check its hash. Returns False if the hash is another one; then no file is left at `target`."""
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
    """Log that a stored file is damaged. Returns `NotFound`, since a damaged file is as useless as a missing one."""
    log.error("the stored file with sha256 %s is damaged", sha256)
    return NotFound(f"the stored file with sha256 {sha256} is damaged; restore it from a backup, or send it again")


def disk_now(folder: Path) -> float:
    """The current time by the clock of a folder's disk, in seconds since the epoch.

    It is compared with the times of the folder's files, because hosts that share the disk may have different clocks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK
    lock.touch()
    return lock.stat().st_mtime


def is_older(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime < moment
    except FileNotFoundError:
        return False
