"""Artifacts in a bucket, through fsspec: for workers on hosts that share no disk with the API.

Every `put` makes an object of its own, `artifacts/<first two digits>/<sha256>/<random>`. A bucket has no locks: so that
a cleanup can never take what somebody has just stored again, it removes objects, not hashes, and only old ones.
Reads take the newest copy and check its hash. S3 shows a new object to every reader at once, and never a part of it.
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

# How long a store may say nothing, for a worker and for a request.
_PATIENT_SECONDS, _HASTY_SECONDS = 30.0, 6.0
# For the question whether it is there, which others wait for.
_LOOK_SECONDS = 4.0
# Of the threads of the API, those that may wait for a store that seems to hang.
_MOST_IN_DOUBT = 12
_LOOK_AGAIN_SECONDS, _LOOK_AGAIN_WHERE_AWAY_SECONDS = 10.0, 1.0
_PART_BYTES = 8 * 1024**2
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
            data_dir: where files are received, and where those that are read are kept for the next reader.
            cache_bytes: how much of the latter.
            is_hasty: for whoever answers requests: a store that says nothing is away after seconds.
            longest_upload: how much older than its end an object may seem.
        """
        super().__init__(data_dir / "incoming")
        self._cache, self._cache_bytes = data_dir / "fetched", cache_bytes
        place = url.removeprefix("s3://").strip("/")
        self._root, self._clock = f"{place}/artifacts", f"{place}/clock"
        self._longest_upload = longest_upload
        self._watch = Watch(_HASTY_SECONDS, most_in_doubt=_MOST_IN_DOUBT) if is_hasty else Watch(_PATIENT_SECONDS)
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
        with suppress(FileNotFoundError):
            # What is here needs no turn, which others may hold who wait for the store.
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
            # The bucket has another.
            cached.unlink()
        self._download(sha256, target)

    def problem(self) -> str | None:
        """Asked by writing: a store may be full, or refuse. What was seen a moment ago holds."""
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
        # Silence is for the watch to end, which notes it.
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
        # More than once: an older copy may be removed between the look and the read, but then there is a newer one.
        for _ in range(3):
            copies = self._copies(sha256)
            if not copies:
                raise absent(sha256)
            _, key = copies[-1]
            try:
                # In one piece: several at once would be held in memory until all have come.
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
        """When each copy of some content came, and what it is called; the newest last."""
        found: dict[str, Any] = self._use("find", self._folder(sha256), detail=True)
        return sorted((info["LastModified"], key) for key, info in found.items())

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

    def _use(self, what: str, *arguments: Any, patience_seconds: float | None = None, **options: Any) -> Any:
        """One of fsspec's operations. As a coroutine, by its documented name: that with an underscore.

        Raises:
            FileNotFoundError, StoreAway
        """
        files = self._files

        async def watched() -> Any:
            return await self._watch.over(getattr(files, f"_{what}")(*arguments, **options), patience_seconds)

        try:
            with _away_recognized():
                return fsspec.asyn.sync(files.loop, watched)
        except StoreAway:
            # The next who asks whether it is there does not hear of better times.
            self._looked = None
            raise

    @contextmanager
    def _turn(self, lock: threading.Lock) -> Iterator[None]:
        """
        Raises:
            StoreAway: another holds it, who waits in vain.
        """
        with ExitStack() as stack:
            with _away_recognized():
                stack.enter_context(self._watch.turn(lock))
            yield

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


def _note_read(cached: Path) -> None:
    """The last that was read is the last to go."""
    os.utime(cached, ns=(time.time_ns(), cached.stat().st_mtime_ns))


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
    # aiohttp's: a connection that ends within an answer. ValueError: an address that is none.
    except (OSError, BotoCoreError, ClientError, aiohttp.ClientError, ValueError) as error:
        if isinstance(error, OSError) and is_disk_full(error):
            # Of this host's disk.
            raise
        if isinstance(error, Silent):
            _log.log(
                logging.DEBUG if isinstance(error, StillSilent) else logging.WARNING,
                "the artifact store does not answer: %s",
                error,
            )
            raise StoreAway("the artifact store does not answer at the moment; try again in a few seconds") from error
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
