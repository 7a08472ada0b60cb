"""Finds the images in tar archives, so that each of them can be read with one seek."""

from __future__ import annotations

import json
import logging
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from gkl.data.photographs import ShardMember
from gkl.errors import InvalidInput
from gkl.files import atomic_path

_log = logging.getLogger(__name__)

INDEX_FILE = "index.json"
_FORMAT = "gkl-shards-1"


def shard_members(folder: Path, suffix: str) -> list[ShardMember]:
    """All members <class>/<file> of the archives <folder>/*.tar whose names end with `suffix`.

    An archive's headers are read once. What was found is kept in <folder>/index.json, with the archive's size and time
    of modification; an archive for which they differ is read again. Where nothing can be written to the folder, every
    run reads the headers.

    Raises:
        InvalidInput: an archive is damaged or compressed, or two members have the same name.
    """
    known, found, is_new = _known(folder / INDEX_FILE), {}, False
    for shard in sorted(folder.glob("*.tar")):
        stat = shard.stat()
        version = [stat.st_size, stat.st_mtime_ns]
        entry = known.get(shard.name)
        if entry is None or entry["version"] != version:
            entry, is_new = {"version": version, "members": _read_headers(shard)}, True
        found[shard.name] = entry
    if is_new:
        _keep(folder / INDEX_FILE, found)
    members = [
        ShardMember(folder / shard, name, offset, size)
        for shard, entry in found.items()
        for name, offset, size in entry["members"]
        if name.endswith(suffix)
    ]
    by_name: dict[str, ShardMember] = {}
    for member in members:
        other = by_name.setdefault(member.name, member)
        if other is not member:
            raise InvalidInput(f"{member.name} is in {other.shard} and again in {member.shard}; keep one of them")
    return members


def _read_headers(shard: Path) -> list[tuple[str, int, int]]:
    """(<class>/<file>, offset, size) of each file in a folder of the archive."""
    _log.info("reading the headers of %s", shard)
    try:
        with tarfile.open(shard, "r:") as archive:
            members = [
                ("/".join(PurePosixPath(info.name).parts[-2:]), info.offset_data, info.size)
                for info in archive
                if info.isreg() and not info.issparse()
            ]
    except (tarfile.TarError, OSError) as error:
        raise InvalidInput(
            f"{shard} cannot be read as an uncompressed tar archive ({error}); fetch or write it again"
        ) from error
    return [member for member in members if "/" in member[0]]


def _known(path: Path) -> dict[str, Any]:
    """The archives of an earlier index; none if it is missing, damaged or of another version."""
    try:
        index = json.loads(path.read_bytes())
        if index["format"] != _FORMAT:
            return {}
        shards: dict[str, Any] = index["shards"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return shards


def _keep(path: Path, shards: dict[str, Any]) -> None:
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({"format": _FORMAT, "shards": shards}))
    except OSError as error:
        _log.warning("the index %s cannot be kept (%s); the next run reads the archives again", path, error.strerror)
