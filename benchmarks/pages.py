"""How fast pages and answers are, what processor time they take, and what memory: by a real server.

    python benchmarks/pages.py [--entries 20000] [--jobs 100000] [--database sqlite|postgresql]

One client on loopback asks one page after the other; at the end several ask for large files at once. A board has 1,000
entries, another as many as are asked for, made up in the published form of RobustBench's files. Of the jobs a tenth is
queued and half are evaluations.

Processor time is that of the API's process, on PostgreSQL also that of the server's processes; memory is the most that
the API's process has held, from its start.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx2
import psutil
from sqlalchemy import insert, text, update

from app.boards import robustbench
from app.core.settings import Settings
from app.db import migrations
from app.db.database import Database, database_now
from app.db.tables import Entry, Job, JobEvent
from app.jobs import metric_sums
from gkl.answers import JobKind, JobState
from gkl.errors import FailureCode
from gkl.recipes.adversarial import digits
from tests.cluster import PostgresServer, free_port, until

REPEATS = 20
HTML = {"Accept": "text/html", "Cache-Control": "no-cache"}
_JOBS_AT_ONCE = 2000
_AT_ONCE = 8


def made(dataset: str, count: int) -> list[tuple[str, bytes]]:
    draw = random.Random(count)
    families = ("WideResNet-28-10", "WideResNet-70-16", "ResNet-18", "PreActResNet-18", "XCiT-S12", "ConvNeXt-L")
    venues = ("ICML", "NeurIPS", "ICLR", "CVPR", "arXiv, Mar")
    files = []
    for number in range(count):
        clean = draw.uniform(70, 96)
        info = {
            "link": f"https://example.org/{number}",
            "name": f"A Paper on Robustness with a Title of Usual Length, Number {number}",
            "authors": "Ada Lovelace, Alan Turing, Emmy Noether, Kurt Gödel",
            "additional_data": draw.random() < 0.3,
            "number_forward_passes": 1,
            "dataset": dataset,
            "venue": f"{draw.choice(venues)} {draw.randint(2018, 2026)}",
            "architecture": draw.choice(families),
            "eps": "8/255",
            "clean_acc": f"{clean:.2f}",
            "reported": "",
            "autoattack_acc": f"{draw.uniform(0.3, 0.8) * clean:.2f}",
            "footnote": "It uses additional 1M synthetic images in training." if draw.random() < 0.3 else "",
            "unreliable": draw.random() < 0.05,
        }
        files.append((f"{dataset}/Linf/Made{number}.json", json.dumps(info, indent=2).encode()))
    return files


def fill_jobs(database: Database, count: int) -> None:
    """Jobs with their events, half of them trainings and half the evaluations that follow those; a tenth is queued."""
    spec = digits().model_dump(mode="json")
    with database.reading() as session:
        now = database_now(session)
    for first in range(1, count + 1, _JOBS_AT_ONCE):
        numbers = range(first, min(count + 1, first + _JOBS_AT_ONCE))
        made_jobs = [_job(number, count, spec, now - timedelta(minutes=count - number + 10)) for number in numbers]
        with database.writing() as session:
            session.execute(insert(Job), made_jobs)
            session.execute(insert(JobEvent), [event for job in made_jobs for event in _events(job)])
    with database.writing() as session:
        if not database.is_sqlite:
            session.execute(text("SELECT setval('jobs_id_seq', :count)"), {"count": count})
        # As the server does by itself within a minute of so many new rows.
        session.execute(text("ANALYZE"))


def _job(number: int, count: int, spec: dict[str, Any], at: datetime) -> dict[str, Any]:
    is_train = number % 2 == 1
    state = JobState.QUEUED if number > 0.9 * count else JobState.FAILED if number % 10 == 0 else JobState.SUCCEEDED
    ended = state.is_final
    return {
        "id": number,
        "kind": JobKind.TRAIN if is_train else JobKind.EVALUATE,
        "parent_id": None if is_train else number - 1,
        "name": f"A job of usual length, number {number}",
        "spec": spec,
        "state": state,
        "submitter": f"user {number % 20}",
        "created_at": at,
        "due_at": None if ended else at,
        "started_at": at if ended else None,
        "finished_at": at + timedelta(minutes=5) if ended else None,
        "run_seconds": 300.0 if ended else 0.0,
        "attempt": int(ended),
        "failure_code": FailureCode.NO_PROGRESS if state is JobState.FAILED else None,
    }


def _events(job: dict[str, Any]) -> list[dict[str, Any]]:
    told: list[tuple[str, dict[str, Any]]] = [("state", {"state": "queued", "reason": "sent"})]
    if job["state"].is_final:
        told += [
            ("state", {"state": "running", "attempt": 1, "worker": "h/1"}),
            ("epoch", {"epoch": 1, "seconds": 3.0}),
            ("state", {"state": job["state"], "code": job["failure_code"] or job["state"]}),
        ]
    return [
        {"job_id": job["id"], "type": kind, "data": data, "created_at": job["created_at"] + timedelta(minutes=number)}
        for number, (kind, data) in enumerate(told)
    ]


class Meter:
    """Asks a server, and reads what its processes use."""

    def __init__(self, url: str, api: psutil.Process, database: psutil.Process | None) -> None:
        self.url, self.api, self.database = url, api, database

    def measure(
        self,
        title: str,
        path: str,
        *,
        repeats: int = REPEATS,
        warm: bool = True,
        known: str = "",
        before: Callable[[], None] = lambda: None,
    ) -> str:
        """Prints a line; returns the answer's ETag, of which one may be known already."""
        times: list[float] = []
        size, tag = 0, ""
        with httpx2.Client(base_url=self.url, headers=HTML | {"If-None-Match": known}, timeout=120) as client:
            if warm:
                client.get(path)
            api, database = _processor(self.api), self._of_database()
            for _ in range(repeats):
                before()
                started = time.perf_counter()
                answer = client.get(path)
                times.append(1000 * (time.perf_counter() - started))
                assert answer.status_code in (200, 304), answer.text
                size, tag = len(answer.content), answer.headers.get("etag", "")
            used = 1000 * (_processor(self.api) - api) / repeats
            of_database = 1000 * (self._of_database() - database) / repeats
        print(
            f"  {title:30} {statistics.median(times):6.0f} {max(times):8.0f} {used:8.0f} {of_database:8.0f} "
            f"{size / 1000:9.0f}",
            flush=True,
        )
        return tag

    def _of_database(self) -> float:
        if self.database is None:
            return 0.0
        # A connection's process ends with it, and is counted by its parent then.
        times = self.database.cpu_times()
        ended = times.children_user + times.children_system
        return ended + _processor(self.database) + sum(_of_child(child) for child in self.database.children())

    def peak_megabytes(self) -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.api.pid}/status").read_text())
        assert found is not None
        return int(found[1]) // 1000

    def at_once(self, path: str) -> None:
        def ask(_: int) -> int:
            with httpx2.stream("GET", f"{self.url}{path}", headers=HTML, timeout=600) as answer:
                assert answer.status_code == 200
                return sum(len(piece) for piece in answer.iter_bytes())

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            assert len(set(threads.map(ask, range(_AT_ONCE)))) == 1


def _processor(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _of_child(process: psutil.Process) -> float:
    try:
        return _processor(process)
    except psutil.NoSuchProcess:
        return 0.0


def run(name: str, database_url: str, directory: Path, given: argparse.Namespace, postgres: int | None) -> None:
    settings = Settings(data_dir=directory, database_url=database_url, port=free_port())
    database = Database(database_url)
    migrations.upgrade(database)
    print(f"{name}: {given.entries} entries and {given.jobs} jobs are made", flush=True)
    robustbench.import_files(database, [*made("cifar10", 1000), *made("cifar100", given.entries)])
    fill_jobs(database, given.jobs)
    started = time.perf_counter()
    # As the relay does now and then.
    metric_sums.count_new_events(database)
    print(f"  all events counted for the metrics in {time.perf_counter() - started:.1f} s")
    environment = {
        "GKLBENCH_DATA_DIR": str(directory),
        "GKLBENCH_DATABASE_URL": database_url,
        "GKLBENCH_PORT": str(settings.port),
    }
    command = [sys.executable, "-m", "app.cli", "serve"]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{settings.port}"
    until(lambda: _answers(url))
    try:
        meter = Meter(url, psutil.Process(server.pid), None if postgres is None else psutil.Process(postgres))
        print(f"  {'':30} {'median':>6} {'slowest':>8} {'API':>8} {'server':>8} {'size':>9}")
        print(f"  {'':30} {'ms':>6} {'ms':>8} {'ms':>8} {'ms':>8} {'kB':>9}", flush=True)
        measure_all(meter, given, lambda: change(database))
    finally:
        server.terminate()
        server.wait()
        database.close()


def change(database: Database) -> None:
    """So that what is kept of the large board is of another revision."""
    with database.writing() as session:
        session.execute(update(Entry).where(Entry.id == 1001).values(changed_at=database_now(session)))


def measure_all(meter: Meter, given: argparse.Namespace, change_board: Callable[[], None]) -> None:
    board, large = "/leaderboards/cifar10/Linf", "/leaderboards/cifar100/Linf"
    print(f"  memory after the start: {meter.peak_megabytes()} MB")
    meter.measure("metrics, first after the start", "/metrics", repeats=1, warm=False)
    meter.measure("metrics", "/metrics")
    meter.measure("home", "/")
    meter.measure("jobs", "/jobs")
    meter.measure("jobs, API", "/api/v1/jobs")
    meter.measure("board, 1,000 entries", board)
    meter.measure(f"board, {given.entries} entries", large)
    meter.measure("  just changed", large, before=change_board)
    tag = meter.measure("  again", large, repeats=1)
    meter.measure("  unchanged (ETag)", large, known=tag)
    meter.measure("  its last page", f"{large}?page={given.entries // 200}")
    meter.measure("  filtered and sorted", f"{large}?family=WideResNet&data=none&sort=-clean")
    meter.measure("  searched", f"{large}?q=turing+2023")
    api = f"/api/v1{large}"
    meter.measure("  API, 100 entries", api)
    meter.measure("  searched, just changed", f"{large}?q=turing+2023", before=change_board)
    meter.measure("  API, sorted by venue", f"{api}?sort=venue")
    meter.measure("  API, 1,000 entries", f"{api}?limit=1000", repeats=5)
    meter.measure("entry", "/entries/1001")
    print(f"  memory until here: {meter.peak_megabytes()} MB", flush=True)
    for kind in ("csv", "json", "robustbench", "bibtex", "latex"):
        tag = meter.measure(f"  all as {kind}", f"{api}/export/{kind}", repeats=2, warm=False)
    meter.measure("  unchanged (ETag)", f"{api}/export/latex", known=tag)
    meter.at_once(f"{api}/export/json")
    print(f"  memory after {_AT_ONCE} at once as JSON: {meter.peak_megabytes()} MB", flush=True)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz").status_code == 200
    except httpx2.TransportError:
        return False


def on_sqlite(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run("SQLite", f"sqlite:///{folder}/bench.sqlite3", Path(folder), given, None)


def on_postgresql(given: argparse.Namespace) -> None:
    server = PostgresServer.started()
    try:
        pid = int((server.server.pgdata / "postmaster.pid").read_text().split()[0])
        with tempfile.TemporaryDirectory() as folder:
            run("PostgreSQL", server.create("bench"), Path(folder), given, pid)
    finally:
        server.remove()


def main() -> None:
    ways: dict[str, Callable[[argparse.Namespace], None]] = {"sqlite": on_sqlite, "postgresql": on_postgresql}
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--entries", type=int, default=20_000)
    options.add_argument("--jobs", type=int, default=100_000)
    options.add_argument("--database", choices=ways, help="one alone")
    given = options.parse_args()
    for name, way in ways.items():
        if given.database in (None, name):
            way(given)


if __name__ == "__main__":
    main()
