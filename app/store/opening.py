"""Which store the settings name."""

from __future__ import annotations

from app.core.settings import Settings
from app.store.base import ArtifactStore
from app.store.folder import FolderStore


def open_store(settings: Settings, *, is_hasty: bool = False) -> ArtifactStore:
    """The store that the settings name. Does not connect.

    Args:
        settings: of the service.
        is_hasty: for whoever answers requests: a store elsewhere that says nothing is away after seconds.
    """
    if not settings.store_url:
        return FolderStore(settings.data_dir)
    from app.store.bucket import ObjectStore  # noqa: PLC0415 - a folder needs nothing of it

    return ObjectStore(
        settings.store_url,
        settings.data_dir.resolve(),
        cache_bytes=settings.store_cache_bytes,
        is_hasty=is_hasty,
    )
