from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from app.artifacts import ArtifactStore
from app.errors import NotFound


def test_equal_files_are_stored_once_under_their_hash(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "data")
    source = tmp_path / "source"
    content = b"weights" * 1_000_000
    source.write_bytes(content)
    stored = store.put(source)
    assert store.put(source) == stored
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert stored.size_bytes == len(content)
    store.fetch(stored.sha256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert content_files(tmp_path / "data") == [store.path(stored.sha256)]


def content_files(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


def grow_old(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def test_only_old_content_that_no_row_names_goes(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "data")
    hashes = []
    for content in (b"named", b"old", b"young", b"stored again"):
        (tmp_path / "source").write_bytes(content)
        hashes.append(store.put(tmp_path / "source").sha256)
    named, old, young, again = hashes
    for sha256 in (named, old, again):
        grow_old(store.path(sha256), 100)
    # The last one: whoever stored it has yet to write the row.
    store.put(tmp_path / "source")
    abandoned, receiving = tmp_path / "data/artifacts/.incoming-a", tmp_path / "data/artifacts/.incoming-b"
    for path, age in ((abandoned, 10_000), (receiving, 100)):
        path.write_bytes(b"half")
        grow_old(path, age)
    assert store.remove_unnamed(lambda found: {named} & set(found), older_than_seconds=50) == 1
    with pytest.raises(NotFound):
        store.path(old)
    assert [store.path(sha256).exists() for sha256 in (named, young, again)] == [True] * 3
    assert (abandoned.exists(), receiving.exists()) == (False, True)


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"])
def test_a_name_that_is_no_hash_reaches_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a sha256"):
        ArtifactStore(tmp_path).path(name)


def test_a_missing_source_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ArtifactStore(tmp_path).put(tmp_path / "absent")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
