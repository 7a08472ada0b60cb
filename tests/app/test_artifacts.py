from __future__ import annotations

import hashlib
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
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert files == [store.path(stored.sha256)]
    store.remove(stored.sha256)
    store.remove(stored.sha256)
    with pytest.raises(NotFound):
        store.path(stored.sha256)


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"])
def test_a_name_that_is_no_hash_reaches_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a sha256"):
        ArtifactStore(tmp_path).path(name)


def test_a_missing_source_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ArtifactStore(tmp_path).put(tmp_path / "absent")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
