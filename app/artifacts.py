"""Files kept by content: checkpoints and weights under their sha256, logs under their job."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app.errors import NotFound

_CHUNK_BYTES = 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredFile:
    sha256: str
    size_bytes: int


class ArtifactStore:
    """A folder in which equal files are stored once. Names are made here, never by a caller."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "artifacts"
        self._logs = data_dir / "logs" / "jobs"

    def put(self, source: Path) -> StoredFile:
        """Copy a file in, hashing on the way; it appears under its name only when it is whole."""
        self._root.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        descriptor, name = tempfile.mkstemp(prefix=".incoming-", dir=self._root)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as target, source.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    size += target.write(chunk)
                target.flush()
                os.fsync(target.fileno())
            path = self._path(digest.hexdigest())
            path.parent.mkdir(exist_ok=True)
            # mkstemp's files are their maker's alone; API and workers may be different users of one folder.
            temporary.chmod(0o644)
            temporary.replace(path)
            for folder in (path.parent, self._root):
                _sync_directory(folder)
        finally:
            temporary.unlink(missing_ok=True)
        return StoredFile(digest.hexdigest(), size)

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
