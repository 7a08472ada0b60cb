"""The artifact store: files under the sha256 of their content, in a folder or in a bucket of an S3-compatible store."""

from app.store.base import (
    CHUNK_BYTES,
    INCOMING,
    ArtifactStore,
    Incoming,
    StoredFile,
    absent,
    checked,
    copy_whole,
    damaged,
    disk_now,
    hash_of,
    log,
)
from app.store.folder import FolderStore
from app.store.opening import open_store

__all__ = [
    "CHUNK_BYTES",
    "INCOMING",
    "ArtifactStore",
    "FolderStore",
    "Incoming",
    "StoredFile",
    "absent",
    "checked",
    "copy_whole",
    "damaged",
    "disk_now",
    "hash_of",
    "log",
    "open_store",
]
