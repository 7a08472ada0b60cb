"""What both kinds of store promise, on a folder and on an S3 server; then what only one of them has to."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from app.core.errors import NotFound, StoreAway
from app.core.settings import Settings
from app.store import ArtifactStore, FolderStore, open_store
from app.store.bucket import ObjectStore
from tests.cluster import until
from tests.object_server import ObjectServer, object_server, way_to


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with object_server() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture
def s3(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> ObjectServer:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    (tmp_path / "data").mkdir()
    if request.param == "folder":
        return FolderStore(tmp_path / "data")
    request.getfixturevalue("s3")
    # A prefix of its own: the server is one for all.
    return ObjectStore(f"s3://bucket/{tmp_path.name}", tmp_path / "data", cache_bytes=10**6, longest_upload=timedelta())


def file(tmp_path: Path, content: bytes) -> Path:
    source = tmp_path / "data" / "source"
    source.write_bytes(content)
    return source


def test_a_file_is_stored_under_its_hash(store: ArtifactStore, tmp_path: Path) -> None:
    content = b"weights" * 1_000_000
    source = file(tmp_path, content)
    stored = store.put(source)
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert stored.size_bytes == len(content)
    assert store.put(source) == store.adopt(source) == stored
    assert store.holds(stored.sha256)
    assert store.path(stored.sha256).read_bytes() == content
    store.fetch(stored.sha256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert store.problem() is None
    assert source.read_bytes() == content


def test_what_is_received_is_there_only_when_it_is_kept(store: ArtifactStore, tmp_path: Path) -> None:
    with store.incoming() as incoming:
        incoming.write(b"half")
        incoming.write(b" and half")
        incoming.flush()
        assert incoming.path.read_bytes() == b"half and half"
        kept = incoming.keep()
    with store.incoming() as incoming:
        incoming.write(b"given up")
    assert store.path(kept.sha256).read_bytes() == b"half and half"
    given_up = hashlib.sha256(b"given up").hexdigest()
    assert not store.holds(given_up)
    for read in (store.path, lambda sha256: store.fetch(sha256, tmp_path / "target")):
        with pytest.raises(NotFound, match="no file with sha256"):
            read(given_up)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert [path.read_bytes() for path in left] == [b"half and half"], "nothing half-written"


def grow_old(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def test_only_content_that_no_row_names_goes(store: ArtifactStore, tmp_path: Path) -> None:
    named, unnamed = (store.put(file(tmp_path, content)).sha256 for content in (b"named", b"unnamed"))
    assert store.remove_unnamed(set, older_than_seconds=-5) == 0, "all are named"
    assert store.remove_unnamed(lambda _: set(), older_than_seconds=3600) == 0, "all are young"
    assert store.remove_unnamed(lambda found: {named} & set(found), older_than_seconds=-5) == 1
    assert (store.holds(named), store.holds(unnamed)) == (True, False)


def test_what_one_has_stored_oneself_can_go_at_once(store: ArtifactStore, tmp_path: Path) -> None:
    """If no row names it, and in a folder if nobody can have stored the same just now."""
    named, unnamed = (store.put(file(tmp_path, content)).sha256 for content in (b"a row's", b"no row's"))
    asked: list[list[str]] = []

    def is_named(hashes: list[str]) -> set[str]:
        asked.append(hashes)
        return {named} & set(hashes)

    if isinstance(store, FolderStore):
        assert store.discard({named, unnamed}, is_named, older_than_seconds=3600) == set()
        assert store.holds(unnamed)
    assert store.discard({named, unnamed}, is_named, older_than_seconds=-5) == {named, unnamed}
    assert asked == [sorted((named, unnamed))]
    assert (store.holds(named), store.holds(unnamed)) == (True, False)


def test_what_another_stored_too_stays_in_a_bucket(s3: ObjectServer, tmp_path: Path) -> None:
    store, other = bucket(tmp_path), bucket(tmp_path)
    (tmp_path / "source").write_bytes(b"the same from two")
    (sha256,) = {each.put(tmp_path / "source").sha256 for each in (store, other)}
    assert store.discard({sha256}, lambda _: set(), older_than_seconds=3600) == {sha256}
    assert other.holds(sha256)


def test_what_killed_writers_left_goes_later(store: ArtifactStore, tmp_path: Path) -> None:
    with store.incoming() as incoming:
        folder = incoming.path.parent
    abandoned, receiving = folder / ".incoming-a", folder / ".incoming-b"
    for path, age in ((abandoned, 10_000), (receiving, 100)):
        path.write_bytes(b"half")
        grow_old(path, age)
    store.remove_unnamed(set, older_than_seconds=50)
    assert (abandoned.exists(), receiving.exists()) == (False, True)


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"])
def test_a_name_that_is_no_hash_reaches_no_file(name: str, store: ArtifactStore, tmp_path: Path) -> None:
    for use in (store.path, store.holds, lambda sha256: store.fetch(sha256, tmp_path / "target")):
        with pytest.raises(ValueError, match="not a sha256"):
            use(name)


def test_a_missing_source_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.put(tmp_path / "absent")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# --- a folder ----------------------------------------------------------------------------------------------------


def test_equal_files_lie_in_a_folder_once_and_are_young_again(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "data")
    (tmp_path / "data").mkdir()
    hashes = []
    for content in (b"old", b"young", b"stored again"):
        hashes.append(store.put(file(tmp_path, content)).sha256)
    old, young, again = hashes
    for sha256 in (old, again):
        grow_old(store.path(sha256), 100)
    # Whoever stored it has yet to write the row.
    store.put(tmp_path / "data" / "source")
    assert len(list((tmp_path / "data" / "artifacts").glob("*/*"))) == 3
    assert store.remove_unnamed(lambda _: set(), older_than_seconds=50) == 1
    assert [store.holds(sha256) for sha256 in (old, young, again)] == [False, True, True]


# --- a bucket ----------------------------------------------------------------------------------------------------


def bucket(tmp_path: Path, *, cache_bytes: int = 10**6, longest_upload: timedelta = timedelta()) -> ObjectStore:
    url = f"s3://bucket/{tmp_path.name}"
    return ObjectStore(url, tmp_path, cache_bytes=cache_bytes, longest_upload=longest_upload)


def keys(s3: ObjectServer, prefix: str) -> list[str]:
    found = s3.client().list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
    return [item["Key"] for item in found if not item["Key"].endswith("/clock")]


def test_the_settings_say_where_artifacts_are(s3: ObjectServer, tmp_path: Path) -> None:
    assert isinstance(open_store(Settings(data_dir=tmp_path)), FolderStore)
    assert isinstance(open_store(Settings(data_dir=tmp_path, store_url="s3://bucket")), ObjectStore)
    for wrong in ("s3://", "s3://UPPER", "https://bucket", "/folder", "s3://bucket/../other"):
        with pytest.raises(ValueError, match="GKLBENCH_STORE_URL must be s3://bucket"):
            Settings(store_url=wrong)


def test_a_cleanup_never_takes_what_was_just_stored_again(s3: ObjectServer, tmp_path: Path) -> None:
    """The second copy comes after the cleanup has looked, and before it removes."""
    store, other = bucket(tmp_path), bucket(tmp_path)
    (tmp_path / "source").write_bytes(b"the same bytes")
    sha256 = store.put(tmp_path / "source").sha256
    time.sleep(2.1)

    def store_again(_: list[str]) -> set[str]:
        other.put(tmp_path / "source")
        return set()

    assert store.remove_unnamed(store_again, older_than_seconds=1) == 1
    assert len(keys(s3, tmp_path.name)) == 1
    (tmp_path / "fetched").mkdir(exist_ok=True)
    assert other.path(sha256).read_bytes() == b"the same bytes"


def test_of_named_content_only_the_newest_copy_stays(s3: ObjectServer, tmp_path: Path) -> None:
    store = bucket(tmp_path)
    (tmp_path / "source").write_bytes(b"stored three times")
    (sha256,) = {store.put(tmp_path / "source").sha256 for _ in range(3)}
    assert store.remove_unnamed(set, older_than_seconds=-5) == 2
    assert len(keys(s3, tmp_path.name)) == 1
    assert store.holds(sha256)


def test_an_object_may_seem_older_than_it_is(s3: ObjectServer, tmp_path: Path) -> None:
    """By as long as it took to send, where a store dates it by its first part."""
    store = bucket(tmp_path, longest_upload=timedelta(hours=1))
    (tmp_path / "source").write_bytes(b"sent for an hour")
    sha256 = store.put(tmp_path / "source").sha256
    assert store.remove_unnamed(lambda _: set(), older_than_seconds=-5) == 0
    assert store.holds(sha256)


@pytest.mark.system
def test_a_store_that_is_frozen_is_told_within_seconds(tmp_path: Path) -> None:
    """It takes connections and says nothing. Whoever asks again soon is told the same at once."""
    with object_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        server.make_bucket("bucket")
        store = bucket(tmp_path)
        with server.frozen():
            started = time.monotonic()
            assert store.problem() == "does not answer"
            assert time.monotonic() - started < 15
            soon = []
            for _ in range(3):
                started = time.monotonic()
                assert store.problem() == "does not answer"
                soon.append(time.monotonic() - started)
            assert min(soon) < 1
        until(lambda: store.problem() is None, seconds=15)


def test_an_address_that_is_none_is_a_problem_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "store:8333")
    assert bucket(tmp_path).problem() == "cannot be used: ValueError"


def test_a_copy_that_the_store_damaged_is_not_served(s3: ObjectServer, tmp_path: Path) -> None:
    store = bucket(tmp_path)
    (tmp_path / "source").write_bytes(b"as it was")
    sha256 = store.put(tmp_path / "source").sha256
    [key] = keys(s3, tmp_path.name)
    s3.client().put_object(Bucket="bucket", Key=key, Body=b"as it is not")
    with pytest.raises(NotFound, match="is damaged; restore it"):
        store.path(sha256)
    assert list((tmp_path / "fetched").iterdir()) == []


def test_one_bit_that_flipped_makes_a_file_absent(store: ArtifactStore, tmp_path: Path) -> None:
    sha256 = store.put(file(tmp_path, b"as it was")).sha256
    # In a bucket it is the copy on this host that is damaged, and the bucket has another.
    path, in_bucket = store.path(sha256), isinstance(store, ObjectStore)
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    target = tmp_path / "target"
    if in_bucket:
        store.fetch(sha256, target)
        assert target.read_bytes() == store.path(sha256).read_bytes() == b"as it was"
        return
    with pytest.raises(NotFound, match="is damaged"):
        store.path(sha256)
    with pytest.raises(NotFound, match="is damaged"):
        store.fetch(sha256, target)
    assert not target.exists()
    # Stored once more, it is there again.
    store.put(file(tmp_path, b"as it was"))
    assert store.path(sha256).read_bytes() == b"as it was"


def test_what_was_read_is_at_hand_and_the_longest_unread_goes_first(s3: ObjectServer, tmp_path: Path) -> None:
    store = bucket(tmp_path, cache_bytes=250)
    hashes = []
    for number in range(4):
        (tmp_path / "source").write_bytes(bytes([number]) * 100)
        hashes.append(store.put(tmp_path / "source").sha256)
    for number, sha256 in enumerate(hashes[:3]):
        grow_old(store.path(sha256), 10_000 - number)
    # Read again, the first is not the longest unread any more.
    store.path(hashes[0])
    s3.client().delete_object(Bucket="bucket", Key=next(key for key in keys(s3, tmp_path.name) if hashes[0] in key))
    assert store.path(hashes[0]).read_bytes() == bytes(100)
    store.path(hashes[3])
    assert {path.name for path in (tmp_path / "fetched").iterdir()} == {hashes[0], hashes[3]}


def test_a_store_that_is_away_is_told_in_one_sentence(tmp_path: Path) -> None:
    with object_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        store = bucket(tmp_path)
        assert bucket(tmp_path).problem() == "its bucket does not exist"
        (tmp_path / "source").write_bytes(b"content")
        with pytest.raises(StoreAway, match="has no bucket"):
            store.put(tmp_path / "source")
        server.make_bucket("bucket")
        stored = store.put(tmp_path / "source")
        port = server.port
        server.stop()
        assert bucket(tmp_path).problem() == "cannot be used: EndpointConnectionError"
        for use in (store.holds, store.path):
            with pytest.raises(StoreAway, match="cannot be used at the moment") as caught:
                use(stored.sha256)
            assert str(port) not in str(caught.value), "no address in an answer"
    assert [path.name for path in (tmp_path / "incoming").iterdir()] == []


def test_a_download_that_is_cut_midway_is_a_store_that_is_away(
    s3: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(os.urandom(1024**2))
    sha256 = bucket(tmp_path).put(tmp_path / "source").sha256
    with way_to(s3.port, bytes_per_second=1024**2) as way, ThreadPoolExecutor(1) as thread:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{way.port}")
        fetching = thread.submit(bucket(tmp_path).fetch, sha256, tmp_path / "copy")
        until(lambda: (tmp_path / "copy").exists() and not fetching.done(), seconds=10)
        way.cut()
        with pytest.raises(StoreAway, match="cannot be used at the moment"):
            fetching.result(timeout=10)


def test_under_its_lock_nothing_goes_from_a_folder(tmp_path: Path) -> None:
    """As while it is copied. Files still come in."""
    store = FolderStore(tmp_path)
    (tmp_path / "source").write_bytes(b"unnamed")
    sha256 = store.put(tmp_path / "source").sha256
    with (tmp_path / "artifacts" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        began = time.monotonic()
        assert store.discard({sha256}, lambda _: set(), older_than_seconds=-5) == set()
        assert time.monotonic() - began < 10, "a run does not wait for it"
        (tmp_path / "source").write_bytes(b"another")
        assert store.holds(store.put(tmp_path / "source").sha256)
    assert store.discard({sha256}, lambda _: set(), older_than_seconds=-5) == {sha256}


def test_a_folder_can_be_copied_while_files_come_in(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    (tmp_path / "source").write_bytes(b"kept")
    kept = store.put(tmp_path / "source")
    with store.incoming() as incoming:
        incoming.write(b"on its way")
        names = {path.name for path in (tmp_path / "artifacts").rglob("*") if path.is_file()}
    assert names == {kept.sha256, ".lock"}
    # What an earlier version left there goes.
    left = tmp_path / "artifacts" / ".incoming-x"
    left.write_bytes(b"half")
    grow_old(left, 10_000)
    store.remove_abandoned()
    assert not left.exists()


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "data")
    assert store.problem() == "does not exist"
    (tmp_path / "data").mkdir()
    assert store.problem() is None
    assert list((tmp_path / "data" / "incoming").iterdir()) == []
    (tmp_path / "data" / "incoming").rmdir()
    (tmp_path / "data" / "incoming").write_bytes(b"a file")
    assert store.problem() == "cannot be written (File exists)"
