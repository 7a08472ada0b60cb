"""Opens the artifact store that the settings name."""

from __future__ import annotations

from app.core.settings import Settings
from app.store.base import ArtifactStore
from app.store.folder import FolderStore


def open_store(settings: Settings, *, is_hasty: bool = False) -> ArtifactStore:
    """Open the store that the settings name, without connecting to it.

    Args:
        settings: the service's.
        is_hasty: whether a bucket that does not answer counts as down after a few seconds instead of half a minute,
            for processes that answer requests.
    """
    if not settings.store_url:
        return FolderStore(settings.data_dir)
    from app.store.bucket import ObjectStore  # noqa: PLC0415 - needs packages that a folder does not need

    return ObjectStore(
        settings.store_url,
        settings.data_dir.resolve(),
        cache_bytes=settings.store_cache_bytes,
        is_hasty=is_hasty,
    )
