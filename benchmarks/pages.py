"""How fast pages are: a board of 1,000 and of 5,000 entries, an entry and the home page, by a real server.

    python benchmarks/pages.py

One client on loopback asks one page after the other, without any cache. The published form of RobustBench's files is
made up for as many entries as it takes.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx2

from app import migrations, robustbench
from app.database import Database
from app.settings import Settings
from tests.cluster import PostgresServer, free_port, until

REPEATS = 40
HTML = {"Accept": "text/html", "Cache-Control": "no-cache"}


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


def measure(url: str, path: str) -> tuple[float, float, int]:
    """Median and slowest answer in milliseconds, and bytes, of a page."""
    times, size = [], 0
    with httpx2.Client(base_url=url, headers=HTML, timeout=60) as client:
        client.get(path).raise_for_status()
        for _ in range(REPEATS):
            started = time.perf_counter()
            answer = client.get(path)
            times.append(1000 * (time.perf_counter() - started))
            assert answer.status_code == 200
            size = len(answer.content)
    return statistics.median(times), max(times), size


def run(name: str, database_url: str, directory: Path) -> None:
    settings = Settings(data_dir=directory, database_url=database_url, port=free_port())
    database = Database(database_url)
    migrations.upgrade(database)
    robustbench.import_files(database, [*made("cifar10", 1000), *made("cifar100", 5000)])
    environment = {
        "GKLBENCH_DATA_DIR": str(directory),
        "GKLBENCH_DATABASE_URL": database_url,
        "GKLBENCH_PORT": str(settings.port),
    }
    command = [sys.executable, "-m", "app.cli", "serve"]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{settings.port}"

    def answers() -> bool:
        try:
            return httpx2.get(f"{url}/healthz").status_code == 200
        except httpx2.TransportError:
            return False

    try:
        until(answers)
        board, large = "/leaderboards/cifar10/Linf", "/leaderboards/cifar100/Linf"
        print(f"{name}; median and slowest of {REPEATS}:")
        for title, path in (
            ("home", "/"),
            ("board, 1,000 entries", board),
            ("  filtered and sorted", f"{board}?family=WideResNet&data=none&sort=-clean"),
            ("  searched", f"{board}?q=turing+2023"),
            ("  all as CSV", f"/api/v1{board}/export/csv"),
            ("board, 5,000 entries", large),
            ("  its last page", f"{large}?page=25"),
            ("  all as JSON", f"/api/v1{large}"),
            ("entry", "/entries/500"),
        ):
            median, slowest, size = measure(url, path)
            print(f"  {title:24} {median:6.0f} ms {slowest:6.0f} ms {size / 1000:8.0f} kB")
        with httpx2.Client(base_url=url, headers=HTML) as client:
            tag = client.get(board).headers["etag"]
            started = time.perf_counter()
            for _ in range(REPEATS):
                assert client.get(board, headers={"If-None-Match": tag}).status_code == 304
            print(f"  {'board, unchanged (ETag)':24} {1000 * (time.perf_counter() - started) / REPEATS:6.0f} ms")
    finally:
        server.terminate()
        server.wait()
        database.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run("SQLite", f"sqlite:///{folder}/bench.sqlite3", Path(folder))
    server = PostgresServer.started()
    try:
        with tempfile.TemporaryDirectory() as folder:
            run("PostgreSQL", server.create("bench"), Path(folder))
    finally:
        server.remove()


if __name__ == "__main__":
    main()
