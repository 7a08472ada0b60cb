"""An artifact store that takes connections and says nothing, or little."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from safetensors.numpy import save

from app.core.errors import StoreAway
from app.core.silence import Silent, Watch, be_patient, sign_of_life
from app.store import bucket
from app.store.bucket import ObjectStore
from tests.cluster import Cluster, until
from tests.object_server import ObjectServer, object_server, way_to

# They wait for seconds of silence.
pytestmark = pytest.mark.system


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    with object_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("bucket")
        yield server


# --- the watch ---------------------------------------------------------------------------------------------------


async def says(signs: list[float]) -> str:
    """A call that shows a sign of life after each of these pauses, and then is answered."""
    for pause in signs:
        await asyncio.sleep(pause)
        sign_of_life()
    return "answer"


async def says_nothing() -> None:
    await asyncio.sleep(60)


def test_a_call_may_take_long_but_not_be_silent_for_long() -> None:
    async def use() -> None:
        watch = Watch(1)
        assert await watch.over(says([0.4] * 6)) == "answer"
        with pytest.raises(Silent, match="for 1 seconds"):
            await watch.over(says_nothing())

    asyncio.run(use())


def test_a_server_may_be_silent_for_longer_over_what_takes_it_long() -> None:
    """As putting the parts of a large object together does."""

    async def works() -> str:
        be_patient(5)
        await asyncio.sleep(0.9)
        return "answer"

    assert asyncio.run(Watch(0.3).over(works())) == "answer"


def test_of_a_silent_server_one_call_at_a_time_asks_whether_it_is_back() -> None:
    async def use() -> None:
        watch = Watch(2)
        started = time.monotonic()
        # The second began later, and ends with the first.
        first = asyncio.ensure_future(watch.over(says_nothing()))
        await asyncio.sleep(1)
        second = asyncio.ensure_future(watch.over(says_nothing()))
        for call in (first, second):
            with pytest.raises(Silent):
                await call
        assert time.monotonic() - started < 2.9
        with pytest.raises(Silent, match="a moment ago"):
            await watch.over(says([]))
        await asyncio.sleep(2.1)
        trial = asyncio.ensure_future(watch.over(says([0.5, 0.5])))
        await asyncio.sleep(0.1)
        with pytest.raises(Silent, match="a moment ago"):
            await watch.over(says([]))
        # Its first sign of life lets the others in.
        await asyncio.sleep(0.6)
        assert await watch.over(says([])) == "answer"
        assert await trial == "answer"

    asyncio.run(use())


def test_where_many_wait_and_nothing_is_heard_some_give_up_early() -> None:
    async def use() -> list[float]:
        watch = Watch(4, most_in_doubt=3)

        async def seconds() -> float:
            started = time.monotonic()
            with pytest.raises(Silent):
                await watch.over(says_nothing())
            return time.monotonic() - started

        return sorted(await asyncio.gather(*(seconds() for _ in range(10))))

    took = asyncio.run(use())
    assert took[6] < 2.5
    assert took[7] > 3.5


def test_one_connection_that_hangs_is_not_a_server_that_does() -> None:
    async def use() -> None:
        watch = Watch(1)
        lively = asyncio.ensure_future(watch.over(says([0.3] * 8)))
        with pytest.raises(Silent):
            await watch.over(says_nothing())
        assert await watch.over(says([])) == "answer"
        assert await lively == "answer"

    asyncio.run(use())


# --- a store -----------------------------------------------------------------------------------------------------


def hasty(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"s3://bucket/{tmp_path.name}", tmp_path, cache_bytes=10**8, is_hasty=True)


@pytest.mark.long
def test_a_large_file_that_comes_slowly_is_not_cut(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part, and several at once; there and back. Each takes longer than a silence may."""
    monkeypatch.setattr(bucket, "_HASTY_SECONDS", 1.5)
    source = tmp_path / "source"
    for part_bytes in (bucket._PART_BYTES, 5 * 1024**2):
        monkeypatch.setattr(bucket, "_PART_BYTES", part_bytes)
        source.write_bytes(os.urandom(11 * 1024**2))
        with way_to(server.port, bytes_per_second=3 * 1024**2) as way:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{way.port}")
            store = hasty(tmp_path)
            started = time.monotonic()
            sha256 = store.put(source).sha256
            assert time.monotonic() - started > 1.5
            started = time.monotonic()
            store.fetch(sha256, tmp_path / "copy")
            assert time.monotonic() - started > 1.5
        assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_a_transfer_that_stops_midway_is_ended(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "_HASTY_SECONDS", 1.5)
    (tmp_path / "source").write_bytes(os.urandom(4 * 1024**2))
    with way_to(server.port, bytes_per_second=2 * 1024**2) as way, ThreadPoolExecutor(1) as thread:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{way.port}")
        store = hasty(tmp_path)
        sha256 = store.put(tmp_path / "source").sha256
        uses: list[Callable[[], object]] = [
            lambda: store.put(tmp_path / "source"),
            lambda: store.fetch(sha256, tmp_path / "copy"),
        ]
        for use in uses:
            going = thread.submit(use)
            time.sleep(0.8)
            assert not going.done()
            way.is_blocked = True
            started = time.monotonic()
            with pytest.raises(StoreAway, match="does not answer at the moment"):
                going.result(timeout=20)
            assert time.monotonic() - started < 10
            way.is_blocked = False
            until(lambda: store.problem() is None, seconds=15)


def test_what_is_here_already_is_given_while_the_store_hangs(server: ObjectServer, tmp_path: Path) -> None:
    """Also while another waits for a file under the same lock."""
    store, source = hasty(tmp_path), tmp_path / "source"
    stored: dict[str, str] = {}
    for number in range(17):
        source.write_bytes(bytes([number]))
        sha256 = store.put(source).sha256
        if (here := stored.setdefault(sha256[0], sha256)) != sha256:
            break
    for _ in range(2):
        store.path(here)
    with server.frozen(), ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(store.path, sha256)
        time.sleep(0.5)
        seconds = []
        for _ in range(3):
            started = time.monotonic()
            assert store.path(here).is_file()
            seconds.append(time.monotonic() - started)
        assert min(seconds) < 1
        with pytest.raises(StoreAway):
            waiting.result(timeout=20)
        assert store.path(here).is_file()


# --- the API -----------------------------------------------------------------------------------------------------

Answers = dict[str, list[tuple[float, httpx2.Response, float]]]
"""Of each kind when it was asked, since the store fell silent; the answer; how long it took."""
_BINARY = {"Content-Type": "application/octet-stream"}


def weights(number: int) -> bytes:
    return save({"weight": np.full(1000, number, np.float32)})


async def ask_a_silent_store(url: str, sent: list[str], seconds: float) -> Answers:
    """Sixty at once want the store, and a few each second after them; beside them are those who want something else."""
    answers: Answers = defaultdict(list)
    began = time.monotonic()
    limits = httpx2.Limits(max_connections=200)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:

        async def ask(kind: str, method: str, path: str, **options: object) -> None:
            asked = time.monotonic()
            answer = await client.request(method, path, **options)  # type: ignore[arg-type]
            answers[kind].append((asked - began, answer, time.monotonic() - asked))

        async def again_and_again(pause: float, *request: str) -> None:
            while time.monotonic() - began < seconds:
                await ask(*request)
                await asyncio.sleep(pause)

        def fetch(number: int) -> str:
            return f"/api/v1/weights/{sent[number % len(sent)]}/file"

        crowd = [ask("store", "GET", fetch(number)) for number in range(50)]
        for number in range(10):
            crowd.append(ask("store", "POST", "/api/v1/weights", content=weights(100 + number), headers=_BINARY))
        await asyncio.gather(
            *crowd,
            *(again_and_again(0.5, "store", "GET", fetch(number)) for number in range(2)),
            again_and_again(0.1, "jobs", "GET", "/api/v1/jobs"),
            again_and_again(0.1, "healthz", "GET", "/healthz"),
            again_and_again(0.5, "readyz", "GET", "/readyz"),
        )
    return answers


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.long
def test_a_store_that_hangs_does_not_stop_the_service(server: ObjectServer, database_url: str, tmp_path: Path) -> None:
    with (
        Cluster(tmp_path, database_url, store_url="s3://bucket/service") as cluster,
        httpx2.Client(base_url=cluster.url, timeout=60, trust_env=False) as client,
    ):
        cluster.start("api")
        sent = []
        for number in range(20):
            content = weights(number)
            client.post("/api/v1/weights", content=content, headers=_BINARY).raise_for_status()
            sent.append(hashlib.sha256(content).hexdigest())
        with server.frozen():
            answers = asyncio.run(ask_a_silent_store(cluster.url, sent, seconds=14))
        thawed = time.monotonic()
        until(lambda: client.get(f"/api/v1/weights/{sent[0]}/file").status_code == 200, seconds=30)
        until(lambda: client.get("/readyz").json()["parts"]["store"] == "ok", seconds=30)
        recovery = time.monotonic() - thawed
    for _, answer, seconds in answers["store"]:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["code"] == "store_away"
        assert seconds < 10
    # Once it is known, only who tries whether it is back has to wait.
    later = sorted(seconds for asked, _, seconds in answers["store"] if asked > 8)
    assert later[len(later) // 2] < 1
    for kind, slowest in (("jobs", 8), ("healthz", 1)):
        assert {answer.status_code for _, answer, _ in answers[kind]} == {200}
        assert max(seconds for _, _, seconds in answers[kind]) < slowest
    assert max(seconds for asked, _, seconds in answers["jobs"] if asked > 4) < 1
    assert {answer.json()["parts"]["store"] for asked, answer, _ in answers["readyz"] if asked > 10} == {
        "does not answer"
    }
    assert recovery < 5
