"""The store for S3 as it is, on s3fs, and the same on obstore, the Python binding of Rust's object_store.

    pip install obstore
    python benchmarks/object_stores.py [--rounds 7]

Prints what each installs, how long its import takes, and how long files take there and back, with the processor time
and the memory that the client needs for them. Both talk to one moto server, in turns, so that each pair of figures is
of the same moment. Then what becomes of an upload over a slow link, and the store's own tests with each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from importlib.metadata import PackagePath, distribution, requires
from pathlib import Path
from typing import Any

# The server, as the tests start it.
sys.path.insert(0, str(Path(__file__).parents[1]))

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from app.core import silence
from app.core.silence import sign_of_life
from app.store import bucket
from app.store.bucket import ObjectStore
from tests.object_server import object_server, way_to

_MEBIBYTE = 1024**2
_LARGE_BYTES, _SMALL_BYTES, _SMALL_FILES = 64 * _MEBIBYTE, 4096, 200
_STORES = ("s3fs", "obstore")
_TESTS = ("tests/app/store/test_store.py", "tests/app/store/test_silent_store.py")


# --- the store on obstore ----------------------------------------------------------------------------------------


class ObstoreStore(ObjectStore):
    """The operations that an ObjectStore uses, by obstore's public functions.

    A download tells of each piece. An upload tells of a part when the next is asked for, and of nothing within it: so
    parts are as small as S3 allows.
    """

    _PART_BYTES = 5 * _MEBIBYTE

    def __init__(self, url: str, *arguments: Any, **options: Any) -> None:
        super().__init__(url, *arguments, **options)
        self._bucket = url.removeprefix("s3://").partition("/")[0]
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._client: S3Store | None = None

    def _use(self, what: str, *arguments: Any, patience_seconds: float | None = None, **options: Any) -> Any:
        if self._client is None:
            # The limit on a whole call, 30 seconds unless it is set, would cut what comes slowly. `read_timeout` would
            # too: it runs while a body is sent, whether it goes or not.
            self._client = S3Store(
                self._bucket,
                client_options={
                    "allow_http": True,
                    "connect_timeout": timedelta(seconds=self._watch.patience_seconds),
                    "timeout": timedelta(days=1),
                },
                retry_config={"max_retries": 1},
            )
        work: Coroutine[Any, Any, Any] = getattr(self, f"_do_{what}")(*arguments, **options)
        try:
            with bucket._away_recognized():
                try:
                    watched = self._watch.over(work, patience_seconds)
                    return asyncio.run_coroutine_threadsafe(watched, self._loop).result()
                except BaseError as error:
                    raise OSError(str(error)) from error
        except bucket.StoreAway:
            self._looked = None
            raise

    def _key(self, path: str) -> str:
        return path.removeprefix(f"{self._bucket}/")

    async def _do_pipe_file(self, path: str, content: bytes) -> None:
        await obstore.put_async(self._client, self._key(path), content)

    async def _do_put_file(self, source: str, path: str, **_: Any) -> None:
        call = silence._current.get()

        def pieces() -> Iterator[bytes]:
            with Path(source).open("rb") as file:
                while piece := file.read(self._PART_BYTES):
                    call.hear()
                    yield piece

        size = Path(source).stat().st_size
        body = pieces() if size > self._PART_BYTES else Path(source).read_bytes()
        await obstore.put_async(
            self._client, self._key(path), body, chunk_size=self._PART_BYTES, max_concurrency=bucket._PARTS_AT_ONCE
        )

    async def _do_get_file(self, path: str, target: str, **_: Any) -> None:
        answer = await obstore.get_async(self._client, self._key(path))
        with Path(target).open("wb") as file:
            async for piece in answer.stream(bucket._READ_BYTES):
                sign_of_life()
                file.write(piece)

    async def _do_find(self, path: str, *, prefix: str = "", **_: Any) -> dict[str, Any]:
        """It lists whole folders only; what begins with a digit is a stretch of one."""
        folder = self._key(path)
        first = f"{folder}/{prefix}"
        found = {}
        async for batch in obstore.list(self._client, folder, offset=first):
            sign_of_life()
            for item in batch:
                if not item["path"].startswith(first):
                    return found
                found[f"{self._bucket}/{item['path']}"] = {"LastModified": item["last_modified"]}
        return found

    async def _do_rm_file(self, path: str) -> None:
        await obstore.delete_async(self._client, self._key(path))

    async def _do_info(self, path: str) -> dict[str, Any]:
        return {"LastModified": (await obstore.head_async(self._client, self._key(path)))["last_modified"]}


def store_on(library: str, folder: Path, *, is_hasty: bool = False) -> ObjectStore:
    kind = {"s3fs": ObjectStore, "obstore": ObstoreStore}[library]
    return kind(f"s3://bucket/{library}-{time.time_ns()}", folder, cache_bytes=10**9, is_hasty=is_hasty)


# --- what it costs to have ---------------------------------------------------------------------------------------


def brought_by(name: str, known: set[str] | None = None) -> set[str]:
    """The packages that one brings here, itself among them."""
    known = set() if known is None else known
    if name not in known:
        known.add(name)
        for line in requires(name) or []:
            # What is for another platform or for an extra is not installed by it.
            if ";" not in line or _holds(line.partition(";")[2]):
                brought_by(re.match(r"[\w.-]+", line).group().lower().replace("_", "-"), known)
    return known


def _holds(marker: str) -> bool:
    from packaging.markers import Marker  # noqa: PLC0415 - pytest brings it

    return Marker(marker).evaluate({"extra": ""})


def installed_bytes(names: set[str]) -> int:
    files: list[PackagePath] = [file for name in names for file in distribution(name).files or []]
    return sum(Path(file.locate()).stat().st_size for file in files if Path(file.locate()).is_file())


def import_seconds_and_bytes(module: str) -> tuple[float, int]:
    """In a new process: how long an import takes, and by how much it makes the process larger."""
    program = (
        "import asyncio, ssl, time, resource\n"
        "def held(): return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        f"before, began = held(), time.perf_counter()\nimport {module}\n"
        "print(time.perf_counter() - began, held() - before)"
    )
    seconds, size = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    return float(seconds), int(size)


# --- files there and back ----------------------------------------------------------------------------------------


def measure(library: str) -> dict[str, float]:
    """In a process of its own, which has done nothing else."""
    figures = {}

    def timed(name: str, use: Callable[[], object]) -> None:
        # From here on the greatest size is that of this use.
        Path("/proc/self/clear_refs").write_text("5")
        before, began, used = _held_bytes("VmRSS"), time.perf_counter(), _processor_seconds()
        use()
        figures[f"{name}, seconds"] = time.perf_counter() - began
        figures[f"{name}, processor seconds"] = _processor_seconds() - used
        figures[f"{name}, memory in MiB"] = (_held_bytes("VmHWM") - before) / _MEBIBYTE

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large, target = folder / "large", folder / "target"
        large.write_bytes(os.urandom(_LARGE_BYTES))
        small = [folder / f"small-{number}" for number in range(_SMALL_FILES)]
        for each in small:
            each.write_bytes(os.urandom(_SMALL_BYTES))
        store = store_on(library, folder)
        timed("first call", store.problem)
        hashes: list[str] = []
        timed("64 MiB sent", lambda: hashes.append(store.put(large).sha256))
        timed("64 MiB fetched", lambda: store.fetch(hashes[0], target))
        timed("200 small sent", lambda: hashes.extend(store.put(each).sha256 for each in small))
        timed("200 small fetched", lambda: [store.fetch(sha256, target) for sha256 in hashes[1:]])
    return figures


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _held_bytes(which: str) -> int:
    return int(re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024


def compare(rounds: int) -> None:
    for library, module in (("s3fs", "s3fs"), ("obstore", "obstore, obstore.store")):
        names = brought_by(library)
        took, held = zip(*(import_seconds_and_bytes(module) for _ in range(rounds)), strict=True)
        print(
            f"{library}: {len(names)} packages, {installed_bytes(names) / 1e6:.1f} MB; import "
            f"{statistics.median(took):.3f} s, {statistics.median(held) / 1e6:.0f} MB of memory"
        )
    with object_server() as server:
        server.make_bucket("bucket")
        measured: dict[str, list[dict[str, float]]] = {library: [] for library in _STORES}
        for number in range(rounds):
            for library in _STORES if number % 2 else reversed(_STORES):
                command = [sys.executable, __file__, "--measure", library]
                answer = subprocess.run(
                    command, env=os.environ | server.environment, stdout=subprocess.PIPE, check=True
                )
                measured[library].append(json.loads(answer.stdout))
    print(f"\n{'':36} {'s3fs':>8} {'obstore':>8} {'obstore / s3fs, median and range':>34}")
    for name in measured["s3fs"][0]:
        ours, theirs = ([each[name] for each in measured[library]] for library in _STORES)
        line = f"{name:36} {statistics.median(ours):8.3f} {statistics.median(theirs):8.3f}"
        if "memory" not in name:
            ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
            line += f" {statistics.median(ratios):14.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(line, flush=True)


def send_slowly() -> None:
    """11 MiB at half a MiB a second on each connection, with the silence that is allowed to a store of the API."""
    with object_server() as server, tempfile.TemporaryDirectory() as name:
        server.make_bucket("bucket")
        source = Path(name) / "source"
        source.write_bytes(os.urandom(11 * _MEBIBYTE))
        with way_to(server.port, bytes_per_second=_MEBIBYTE / 2) as way:
            os.environ.update(server.environment | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{way.port}"})
            for library in _STORES:
                store = store_on(library, Path(name), is_hasty=True)
                print(f"{library}, watched for silence: {_end_of(lambda store=store: store.put(source))}")
            own = S3Store(
                "bucket",
                client_options={"allow_http": True, "timeout": "1 hour", "read_timeout": "6 s"},
                retry_config={"max_retries": 0},
            )
            print(f"obstore, its own read_timeout: {_end_of(lambda: own.put('slow', source.read_bytes()))}", flush=True)


def _end_of(use: Callable[[], object]) -> str:
    began = time.perf_counter()
    try:
        use()
    except (bucket.StoreAway, BaseError) as error:
        return f"ended after {time.perf_counter() - began:.1f} s: {str(error).splitlines()[0]}"
    return f"sent in {time.perf_counter() - began:.1f} s"


def run_tests(library: str) -> int:
    """The store's own tests, with the store on this library in place of what they import."""
    if library == "obstore":
        bucket.ObjectStore = ObstoreStore  # type: ignore[misc]
    skipped = "test_a_store_that_hangs_does_not_stop_the_service"  # it starts processes that would take the other
    # pytest would rather import itself what is here already.
    options = ["-p", "no:cacheprovider", "-n", "0", "--tb=no", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return pytest.main([*_TESTS, *options, "-k", f"not {skipped}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", choices=_STORES, help=argparse.SUPPRESS)
    parser.add_argument("--tests", choices=_STORES, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measure(chosen.measure)))
    elif chosen.tests:
        sys.exit(run_tests(chosen.tests))
    else:
        compare(chosen.rounds)
        print("\n11 MiB over a slow link:")
        send_slowly()
        for library in _STORES:
            print(f"\nThe store's tests, with {library}:", flush=True)
            subprocess.run([sys.executable, __file__, "--tests", library], check=False)


if __name__ == "__main__":
    main()
