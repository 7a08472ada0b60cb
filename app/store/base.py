"""Files kept by content: checkpoints, weights and certificates under their sha256.

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
        before = disk_now(folder) - ABANDONED_SECONDS
        for path in folder.glob(f"{INCOMING}*"):
            if is_older(path, before):
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
    log.error("the stored file with sha256 %s is damaged", sha256)
    return NotFound(f"the stored file with sha256 {sha256} is damaged; restore it from a backup, or send it again")


def disk_now(folder: Path) -> float:
    """The clock of a folder's disk, by which the ages of its files are judged: hosts that share it may disagree."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK
    lock.touch()
    return lock.stat().st_mtime


def is_older(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime < moment
    except FileNotFoundError:
        return False
