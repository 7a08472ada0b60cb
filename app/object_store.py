"""Artifacts in a bucket, through fsspec: for workers on hosts that share no disk with the API.

Every `put` makes an object of its own, `artifacts/<first two digits>/<sha256>/<random>`. A bucket has no locks: so that
a cleanup can never take what somebody has just stored again, it removes objects, not hashes, and only old ones.
Reads take the newest copy and check its hash. S3 shows a new object to every reader at once, and never a part of it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import shutil
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn
from botocore.exceptions import BotoCoreError, ClientError

from app.artifacts import INCOMING, ArtifactStore, StoredFile, absent, checked, copy_whole, damaged, hash_of
from app.errors import StoreAway

_log = logging.getLogger(__name__)

_CONNECT_SECONDS, _READ_SECONDS = 5, 60
# For the question whether it is there, which others wait for.
_LOOK_CONNECT_SECONDS, _LOOK_READ_SECONDS = 3, 5
_CALL_SECONDS, _LOOK_SECONDS = 120, 8
_SLOWEST_BYTES_PER_SECOND = 10**6
_LOOK_AGAIN_SECONDS = 20
_PART_BYTES = 16 * 1024**2
_PARTS_AT_ONCE = 4
_REMEMBERED = 1000
# A reader may yet open what it has just asked the path of.
_IN_USE_SECONDS = 600
# A store may date an object that came in parts by when the first part did.
_LONGEST_UPLOAD = timedelta(days=1)


class ObjectStore(ArtifactStore):
    """A bucket of an S3-compatible store. Credentials and endpoint are in the environment, as for every S3 client:
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION.
    """

    def __init__(
        self, url: str, data_dir: Path, *, cache_bytes: int, longest_upload: timedelta = _LONGEST_UPLOAD
    ) -> None:
        """
        Args:
            url: s3://bucket or s3://bucket/prefix.
            data_dir: where files are received, and where those that are read are kept for the next reader.
            cache_bytes: how much of the latter.
            longest_upload: how much older than its end an object may seem.
        """
        super().__init__(data_dir / "incoming")
        self._cache, self._cache_bytes = data_dir / "fetched", cache_bytes
        place = url.removeprefix("s3://").strip("/")
        self._root, self._clock = f"{place}/artifacts", f"{place}/clock"
        self._longest_upload = longest_upload
        self._fetching = [threading.Lock() for _ in range(16)]
        """By the first digit of what is fetched: many who ask for the same file wait for one copy."""
        self._put: OrderedDict[str, str] = OrderedDict()
        """Where the newest contents are that this process has stored, by their hashes."""
        self._looking = threading.Lock()
        self._looked: tuple[float, str | None] | None = None

    def put(self, source: Path) -> StoredFile:
        # Under a name of its own, what is hashed is what is sent, whatever becomes of the other name meanwhile.
        self._incoming_dir.mkdir(parents=True, exist_ok=True)
        link = self._incoming_dir / f"{INCOMING}{secrets.token_hex(16)}"
        try:
            _link_or_copy(source, link)
            with link.open("rb") as file:
                stored = hash_of(file)
            self._place(link, stored)
        finally:
            link.unlink(missing_ok=True)
        return stored

    def adopt(self, source: Path) -> StoredFile:
        return self.put(source)

    def holds(self, sha256: str) -> bool:
        return bool(self._copies(sha256))

    def path(self, sha256: str) -> Path:
        cached = self._cache / checked(sha256)
        with self._fetching[int(sha256[0], 16)]:
            try:
                if not self._is_whole(cached, sha256):
                    cached.unlink()
                # The last that was read is the last to go.
                os.utime(cached, ns=(time.time_ns(), cached.stat().st_mtime_ns))
            except FileNotFoundError:
                self._cache.mkdir(parents=True, exist_ok=True)
                temporary = self._cache / f"{INCOMING}{secrets.token_hex(16)}"
                try:
                    self._download(sha256, temporary)
                    temporary.replace(cached)
                finally:
                    temporary.unlink(missing_ok=True)
                self._bound_cache()
        return cached

    def fetch(self, sha256: str, target: Path) -> None:
        cached = self._cache / checked(sha256)
        with suppress(FileNotFoundError):
            if copy_whole(cached, target, sha256):
                return
            # The bucket has another.
            cached.unlink()
        self._download(sha256, target)

    def problem(self) -> str | None:
        """Asked by writing: a store may be full, or refuse. What was seen a moment ago holds."""
        with self._looking:
            if self._looked is None or time.monotonic() - self._looked[0] > _LOOK_AGAIN_SECONDS:
                found = self._look()
                self._looked = (time.monotonic(), found)
            return self._looked[1]

    def _look(self) -> str | None:
        try:
            with _away_recognized():
                _call(self._quick, "pipe_file", self._clock, b"", seconds=_LOOK_SECONDS)
        except FileNotFoundError:
            return "its bucket does not exist"
        except StoreAway as error:
            return f"cannot be used: {type(error.__cause__).__name__}"
        return None

    @cached_property
    def _files(self) -> Any:
        return _client(_CONNECT_SECONDS, _READ_SECONDS)

    @cached_property
    def _quick(self) -> Any:
        return _client(_LOOK_CONNECT_SECONDS, _LOOK_READ_SECONDS)

    def _place(self, temporary: Path, stored: StoredFile) -> None:
        key = f"{self._folder(stored.sha256)}/{secrets.token_hex(8)}"
        try:
            self._use("put_file", str(temporary), key, chunksize=_PART_BYTES, size_bytes=stored.size_bytes)
        except FileNotFoundError as error:
            raise StoreAway("the artifact store has no bucket; make the one that GKLBENCH_STORE_URL names") from error
        self._put[stored.sha256] = key
        while len(self._put) > _REMEMBERED:
            self._put.popitem(last=False)

    def _download(self, sha256: str, target: Path) -> None:
        # More than once: an older copy may be removed between the look and the read, but then there is a newer one.
        for _ in range(3):
            copies = self._copies(sha256)
            if not copies:
                raise absent(sha256)
            _, key, size_bytes = copies[-1]
            try:
                self._use("get_file", key, str(target), size_bytes=size_bytes)
            except FileNotFoundError:
                continue
            with target.open("rb") as file:
                if hash_of(file).sha256 == sha256:
                    return
            target.unlink()
            break
        raise damaged(sha256)

    def _copies(self, sha256: str) -> list[tuple[datetime, str, int]]:
        """When each copy of some content came, what it is called, and its size; the newest last."""
        found: dict[str, Any] = self._use("find", self._folder(sha256), detail=True)
        return sorted((info["LastModified"], key, info["size"]) for key, info in found.items())

    def discard(
        self, hashes: Collection[str], is_named: Callable[[list[str]], set[str]], *, older_than_seconds: float
    ) -> set[str]:
        """Of any age: an object that this process has put is nobody else's, who has put the same has another."""
        named = is_named(sorted(hashes)) if hashes else set()
        for sha256 in set(hashes) - named:
            key = self._put.pop(sha256, None)
            if key is not None:
                with suppress(FileNotFoundError):
                    self._use("rm_file", key)
        return set(hashes)

    def _remove_unnamed(self, is_named: Callable[[list[str]], set[str]], older_than_seconds: float) -> int:
        removed = 0
        before = self._now() - timedelta(seconds=older_than_seconds) - self._longest_upload
        # In sixteen parts, which bounds what is held at once.
        for digit in "0123456789abcdef":
            copies: dict[str, list[tuple[datetime, str]]] = defaultdict(list)
            found: dict[str, Any] = self._use("find", self._root, prefix=digit, detail=True)
            for key, info in found.items():
                copies[key.split("/")[-2]].append((info["LastModified"], key))
            old = sorted(sha256 for sha256, each in copies.items() if min(each)[0] < before)
            named = is_named(old) if old else set()
            for sha256 in old:
                *older, newest = sorted(copies[sha256])
                for moment, key in older if sha256 in named else [*older, newest]:
                    if moment < before:
                        self._use("rm_file", key)
                        removed += 1
        return removed

    def _now(self) -> datetime:
        """The store's clock, which its files' ages are judged by."""
        self._use("pipe_file", self._clock, b"")
        moment: datetime = self._use("info", self._clock)["LastModified"]
        return moment

    def _use(self, what: str, *arguments: Any, size_bytes: int = 0, **options: Any) -> Any:
        """
        Raises:
            FileNotFoundError, StoreAway
        """
        seconds = _CALL_SECONDS + size_bytes / _SLOWEST_BYTES_PER_SECOND
        with _away_recognized():
            return _call(self._files, what, *arguments, seconds=seconds, **options)

    def _folder(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{checked(sha256)}"

    def _bound_cache(self) -> None:
        files = []
        for path in self._cache.iterdir():
            try:
                files.append((path.stat(), path))
            except FileNotFoundError:
                continue
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda file: file[0].st_atime):
            if total <= self._cache_bytes or stat.st_atime > time.time() - _IN_USE_SECONDS:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size


def _client(connect_seconds: int, read_seconds: int) -> Any:
    files = fsspec.filesystem(
        "s3",
        # Others write the same bucket.
        use_listings_cache=False,
        skip_instance_cache=True,
        max_concurrency=_PARTS_AT_ONCE,
        config_kwargs={
            "connect_timeout": connect_seconds,
            "read_timeout": read_seconds,
            "retries": {"total_max_attempts": 2, "mode": "standard"},
        },
    )
    # Its own come on top of those, and whoever waits here sees nothing else meanwhile.
    files.retries = 1
    return files


def _call(files: Any, what: str, *arguments: Any, seconds: float, **options: Any) -> Any:
    """One of fsspec's operations, ended after some seconds: a store that takes a connection and then says nothing is
    waited for without end where a request asks whether to go on (Expect: 100-continue)."""

    async def limited() -> Any:
        return await asyncio.wait_for(getattr(files, f"_{what}")(*arguments, **options), seconds)

    return fsspec.asyn.sync(files.loop, limited)


@contextmanager
def _away_recognized() -> Iterator[None]:
    """
    Raises:
        FileNotFoundError: there is no such object, or bucket.
        StoreAway: in place of whatever else the store or the way to it has against the call.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    # ValueError: an address that is none.
    except (OSError, BotoCoreError, ClientError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            # Of this host's disk.
            raise
        # The log has the addresses, which an answer should not have.
        _log.warning("the artifact store cannot be used: %s: %s", type(error).__name__, error)
        raise StoreAway(
            f"the artifact store cannot be used at the moment ({type(error).__name__}); try again in a few seconds"
        ) from error


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)
