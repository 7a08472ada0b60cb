from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
import torch

from gkl.data import load_train, shards
from gkl.data.photographs import read_rgb
from gkl.data.shards import INDEX_FILE, shard_members
from gkl.errors import InvalidInput
from tests.data_files import write_imagenet_shards, write_imagenet_training_images, write_photograph


@pytest.fixture
def datasets_dir(tmp_path: Path) -> Path:
    photographs = [write_photograph(tmp_path / f"{seed}.JPEG", 60, 50, seed=seed) for seed in range(3)]
    write_imagenet_training_images(tmp_path, photographs)
    return tmp_path


def test_images_of_shards_are_those_of_the_folder_in_the_same_order(datasets_dir: Path) -> None:
    folder = load_train("imagenet", datasets_dir)
    write_imagenet_shards(datasets_dir, 3)
    sharded = load_train("imagenet", datasets_dir)
    assert torch.equal(sharded.labels, folder.labels)
    assert sharded.sha256() == folder.sha256()
    index = torch.arange(5)
    assert torch.equal(sharded.take(index), folder.take(index))


def test_the_index_is_made_once_and_again_for_a_shard_that_has_changed(
    datasets_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_imagenet_shards(datasets_dir, 3)
    read: list[str] = []
    headers = shards._read_headers

    def counting(shard: Path) -> list[tuple[str, int, int]]:
        read.append(shard.name)
        return headers(shard)

    monkeypatch.setattr(shards, "_read_headers", counting)
    first = shard_members(folder, ".JPEG")
    assert len(first) == 1000
    assert read == ["0.tar", "1.tar", "2.tar"]
    assert shard_members(folder, ".JPEG") == first
    assert len(read) == 3
    os.utime(folder / "1.tar", (0, 0))
    assert shard_members(folder, ".JPEG") == first
    assert read[3:] == ["1.tar"]
    for damaged in (b"{", b"[]", json.dumps({"format": "another"}).encode()):
        (folder / INDEX_FILE).write_bytes(damaged)
        assert shard_members(folder, ".JPEG") == first
    assert len(read) == 13


def test_an_index_that_cannot_be_kept_is_made_by_every_run(datasets_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_imagenet_shards(datasets_dir, 1)

    def read_only(path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(shards, "atomic_path", read_only)
    assert len(shard_members(folder, ".JPEG")) == 1000
    assert not (folder / INDEX_FILE).exists()


def test_damaged_shards_and_missing_members_are_a_sentence(datasets_dir: Path) -> None:
    folder = write_imagenet_shards(datasets_dir, 2)
    members = shard_members(folder, ".JPEG")
    whole = (folder / "0.tar").read_bytes()
    last = max(member.offset for member in members if member.shard.name == "0.tar")
    (folder / "0.tar").write_bytes(whole[: last + 10])
    with pytest.raises(InvalidInput, match=r"/0.tar cannot be read as an uncompressed tar archive .*fetch or write it"):
        shard_members(folder, ".JPEG")
    # After the index was made.
    cut = next(member for member in members if member.offset == last)
    with pytest.raises(
        InvalidInput, match=r"JPEG in .*0.tar cannot be read as an image \(the archive ends within it\)"
    ):
        read_rgb(cut)
    (folder / "0.tar").write_bytes(whole[:last] + b"x" * (len(whole) - last))
    with pytest.raises(InvalidInput, match=r"JPEG in .*0.tar cannot be read as an image \(cannot identify"):
        read_rgb(cut)
    (folder / "0.tar").unlink()
    with pytest.raises(
        InvalidInput, match=r"not whole: there is no n\d+/\*.JPEG in .*train-shards/\*.tar, and 499 more"
    ):
        load_train("imagenet", datasets_dir)
    (folder / "0.tar").write_bytes((folder / "1.tar").read_bytes())
    with pytest.raises(InvalidInput, match=r"is in .*/0.tar and again in .*/1.tar; keep one of them"):
        load_train("imagenet", datasets_dir)


def test_other_members_are_passed_over(datasets_dir: Path) -> None:
    folder = write_imagenet_shards(datasets_dir, 1)
    other = datasets_dir / "README"
    other.write_text("not an image")
    with tarfile.open(folder / "0.tar", "a") as archive:
        archive.add(other, "README")
        archive.add(other, "n01440764/README")
        archive.add(datasets_dir / "0.JPEG", "n99999999/other.JPEG")
    assert len(load_train("imagenet", datasets_dir)) == 1000
