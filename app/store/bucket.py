"""The artifact store in a bucket, through fsspec, for workers on hosts that share no disk with the API.

Each `put` writes a new object, `artifacts/<first two digits>/<sha256>/<random>`. A bucket has no locks. So a cleanup
removes single old objects, not all objects of a hash, and never removes content that somebody has just stored again.
Reads take the newest copy and check its hash. S3 shows a new object to all readers at once, and never a part of it.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import aiohttp
import fsspec.asyn
from botocore.exceptions import BotoCoreError, ClientError

from app.core.errors import StoreAway
from app.core.silence import Silent, StillSilent, Watch
from app.store.base import INCOMING, ArtifactStore, StoredFile, absent, checked, copy_whole, damaged, hash_of
from app.store.s3_client import open_client
from gkl.files import is_disk_full

_log = logging.getLogger(__name__)

# After how many seconds of silence a store counts as down, for a worker and for a request.
_PATIENT_SECONDS, _HASTY_SECONDS = 30.0, 6.0
# The same for the check whether the store is up, for which others wait.
_LOOK_SECONDS = 4.0
# At most this many threads of the API may wait for a store that seems to hang.
_MOST_IN_DOUBT = 12
_LOOK_AGAIN_SECONDS, _LOOK_AGAIN_WHERE_AWAY_SECONDS = 10.0, 1.0
_PART_BYTES = 8 * 1024**2
_REMEMBERED = 1000
# A file read this recently stays in the cache, since a reader may have its path and open it later.
_IN_USE_SECONDS = 600
# A store may date an object that came in parts by the time of its first part.
_LONGEST_UPLOAD = timedelta(days=1)


class ObjectStore(ArtifactStore):
    """A bucket of an S3-compatible store. Credentials and endpoint come from the environment, as for every S3 client:
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION.
    """

    def __init__(
        self,
        url: str,
        data_dir: Path,
        *,
        cache_bytes: int,
        is_hasty: bool = False,
        longest_upload: timedelta = _LONGEST_UPLOAD,
    ) -> None:
        """
        Args:
            url: s3://bucket or s3://bucket/prefix.
            data_dir: the folder for files that are being received, and for a cache of files that were read.
            cache_bytes: the largest size of that cache.
            is_hasty: whether a store that does not answer counts as down after 6 seconds instead of 30, for processes
                that answer requests.
            longest_upload: how much older than the end of its upload an object's date may be.
        """
        super().__init__(data_dir / "incoming")
        self._cache, self._cache_bytes = data_dir / "fetched", cache_bytes
        place = url.removeprefix("s3://").strip("/")
        self._root, self._clock = f"{place}/artifacts", f"{place}/clock"
        self._longest_upload = longest_upload
        self._watch = Watch(_HASTY_SECONDS, most_in_doubt=_MOST_IN_DOUBT) if is_hasty else Watch(_PATIENT_SECONDS)
        self._fetching = [threading.Lock() for _ in range(16)]
        """Locks by the first digit of the hash, so that several readers of one file wait for a single download."""
        self._put: OrderedDict[str, str] = OrderedDict()
        """Hash -> key of the object, for the newest objects that this process has stored."""
        self._looking = threading.Lock()
        self._looked: tuple[float, str | None] | None = None

    def put(self, source: Path) -> StoredFile:
        # A hard link of its own: the hashed file is the file that is sent, even if another replaces `source` meanwhile.
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
        with suppress(FileNotFoundError):
            # A cached file needs no lock, which may be held by a reader that waits for the store.
            if self._is_checked(cached):
                _note_read(cached)
                return cached
        with self._turn(self._fetching[int(sha256[0], 16)]):
            try:
                if not self._is_whole(cached, sha256):
                    cached.unlink()
                _note_read(cached)
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
            # The cached file is damaged; the bucket has another copy.
            cached.unlink()
        self._download(sha256, target)

    def problem(self) -> str | None:
        """Check by writing an object, since the store may be full or refuse writes. A recent answer is reused."""
        with self._looking:
            if self._looked is not None:
                seen_at, found = self._looked
                again = _LOOK_AGAIN_SECONDS if found is None else _LOOK_AGAIN_WHERE_AWAY_SECONDS
                if time.monotonic() - seen_at < again:
                    return found
            found = self._look()
            self._looked = (time.monotonic(), found)
            return found

    def _look(self) -> str | None:
        try:
            self._use("pipe_file", self._clock, b"", patience_seconds=_LOOK_SECONDS)
        except FileNotFoundError:
            return "its bucket does not exist"
        except StoreAway as error:
            cause = error.__cause__
            return "does not answer" if isinstance(cause, Silent) else f"cannot be used: {type(cause).__name__}"
        return None

    @cached_property
    def _files(self) -> Any:
        # Longer than the watch waits: the watch ends silent calls, and remembers that the store was silent.
        return open_client(self._watch.patience_seconds + 5)

    def _place(self, temporary: Path, stored: StoredFile) -> None:
        key = f"{self._folder(stored.sha256)}/{secrets.token_hex(8)}"
        try:
            self._use("put_file", str(temporary), key, chunksize=_PART_BYTES)
        except FileNotFoundError as error:
            raise StoreAway("the artifact store has no bucket; make the one that GKLBENCH_STORE_URL names") from error
        self._put[stored.sha256] = key
        while len(self._put) > _REMEMBERED:
            self._put.popitem(last=False)

    def _download(self, sha256: str, target: Path) -> None:
        # Several attempts: a copy may be removed between listing and reading, but then there is a newer one.
        for _ in range(3):
            copies = self._copies(sha256)
            if not copies:
                raise absent(sha256)
            _, key = copies[-1]
            try:
                # One part at a time: several concurrent parts would be kept in memory until all have arrived.
                self._use("get_file", key, str(target), max_concurrency=1)
            except FileNotFoundError:
                continue
            with target.open("rb") as file:
                if hash_of(file).sha256 == sha256:
                    return
            target.unlink()
            break
        raise damaged(sha256)

    def _copies(self, sha256: str) -> list[tuple[datetime, str]]:
        """Time and key of each copy of some content, the newest last."""
        found: dict[str, Any] = self._use("find", self._folder(sha256), detail=True)
        return sorted((info["LastModified"], key) for key, info in found.items())

    def discard(
        self, hashes: Collection[str], is_named: Callable[[list[str]], set[str]], *, older_than_seconds: float
    ) -> set[str]:
        """Remove objects of any age: another process that has stored the same content has an object of its own."""
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
        # In sixteen parts, which bounds the memory for the list of objects.
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
        """The current time by the store's clock, which also dates its objects."""
        self._use("pipe_file", self._clock, b"")
        moment: datetime = self._use("info", self._clock)["LastModified"]
        return moment

    def _use(self, what: str, *arguments: Any, patience_seconds: float | None = None, **options: Any) -> Any:
        """Call an operation of fsspec by its name, such as "put_file", and wait for it until the store is silent.

        It calls the coroutine of this operation, which fsspec documents under the name with an underscore.

        Raises:
            FileNotFoundError: there is no such object, or no such bucket.
            StoreAway: the store is down.
        """
        files = self._files

        async def watched() -> Any:
            return await self._watch.over(getattr(files, f"_{what}")(*arguments, **options), patience_seconds)

        try:
            with _away_recognized():
                return fsspec.asyn.sync(files.loop, watched)
        except StoreAway:
            # The next `problem` must check again instead of reusing an older answer.
            self._looked = None
            raise

    @contextmanager
    def _turn(self, lock: threading.Lock) -> Iterator[None]:
        """Hold a lock.

        Raises:
            StoreAway: another thread holds the lock and waits for a store that does not answer.
        """
        with ExitStack() as stack:
            with _away_recognized():
                stack.enter_context(self._watch.turn(lock))
            yield

    def _folder(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{checked(sha256)}"

    def _bound_cache(self) -> None:
        """Remove the least recently read files from the cache, until it has its allowed size."""
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


def _note_read(cached: Path) -> None:
    """Note in the file's access time that it was read now, so that `_bound_cache` removes it last."""
    os.utime(cached, ns=(time.time_ns(), cached.stat().st_mtime_ns))


@contextmanager
def _away_recognized() -> Iterator[None]:
    """Turn errors of the store and of the network into `StoreAway`.

    Raises:
        FileNotFoundError: there is no such object, or no such bucket.
        StoreAway: any other error of the store or of the network.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    # aiohttp.ClientError: the connection ended within a response. ValueError: the endpoint's address is invalid.
    except (OSError, BotoCoreError, ClientError, aiohttp.ClientError, ValueError) as error:
        if isinstance(error, OSError) and is_disk_full(error):
            # This host's disk is full, not the store.
            raise
        if isinstance(error, Silent):
            _log.log(
                logging.DEBUG if isinstance(error, StillSilent) else logging.WARNING,
                "the artifact store does not answer: %s",
                error,
            )
            raise StoreAway("the artifact store does not answer at the moment; try again in a few seconds") from error
        # The whole error goes to the log only: it contains addresses that a response should not show.
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
