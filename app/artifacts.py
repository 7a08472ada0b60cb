"""Files kept by content: checkpoints, weights and certificates under their sha256, logs under their job."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.errors import NotFound

_CHUNK_BYTES = 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")


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

    def flush(self) -> None:
        """So that what was written can be read at `path`."""
        self._file.flush()

    def keep(self) -> StoredFile:
        self._file.flush()
        os.fsync(self._file.fileno())
        path = self._final_path(self._digest.hexdigest())
        path.parent.mkdir(exist_ok=True)
        # mkstemp's files are their maker's alone; API and workers may be different users of one folder.
        self.path.chmod(0o644)
        self.path.replace(path)
        for folder in (path.parent, path.parent.parent):
            _sync_directory(folder)
        return StoredFile(self._digest.hexdigest(), self._size)


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

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """A file that is being received; it appears under its name only when it is whole and kept."""
        self._root.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".incoming-", dir=self._root)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield Incoming(Path(name), file, self._path)
        finally:
            Path(name).unlink(missing_ok=True)

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

    def remove(self, sha256: str) -> None:
        self._path(sha256).unlink(missing_ok=True)

    def job_log(self, job_id: int) -> Path:
        """The log of a job's runs; may not exist yet."""
        return self._logs / f"{job_id}.log"

    def _path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"not a sha256: {sha256!r}")
        return self._root / sha256[:2] / sha256


def _sync_directory(folder: Path) -> None:
    """A new name is on disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
