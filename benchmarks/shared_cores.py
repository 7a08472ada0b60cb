"""How much slower a training gets beside other work on the same cores.

    .venv/bin/python benchmarks/shared_cores.py [--epochs 15]

Trains the demo's network in processes of their own: with the environment that a worker gives a run, and with OpenMP's
own defaults; each alone, and beside one busy loop for each core. Prints seconds an epoch, the median, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

from joblib import cpu_count

from gkl import recipes
from gkl.outcome import Event, Progress
from gkl.run_context import RunContext
from gkl.training import train as run


def train(epochs: int) -> None:
    """In a process of its own: prints the seconds that each epoch took, as JSON."""
    ends: dict[str, float] = {}

    def report(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "training":
            ends.setdefault(event.detail, time.perf_counter())

    spec = recipes.digits().model_copy(update={"epochs": epochs, "evaluation": None})
    with tempfile.TemporaryDirectory() as folder:
        run(spec, RunContext(directory=Path(folder), datasets_dir=Path(folder), report=report))
    times = list(ends.values())
    print(json.dumps([later - earlier for earlier, later in pairwise(times)]))


@contextmanager
def busy_loop() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def seconds_an_epoch(environment: dict[str, str], epochs: int, *, loops: int) -> float:
    with ExitStack() as stack:
        for _ in range(loops):
            stack.enter_context(busy_loop())
        done = subprocess.run(
            [sys.executable, __file__, "--epochs", str(epochs), "--train"],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
    return median(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.epochs)
        return
    cores = cpu_count()
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    ours = plain | {"OMP_NUM_THREADS": str(cores), "OMP_WAIT_POLICY": "PASSIVE"}
    print(f"{cores} cores, as many busy loops\n")
    print("| environment | alone | beside | ratio |")
    print("|---|---|---|---|")
    for name, environment in (("a run's", ours), ("OpenMP's defaults", plain)):
        alone, beside = (seconds_an_epoch(environment, options.epochs, loops=loops) for loops in (0, cores))
        print(f"| {name} | {alone:.3f} s | {beside:.3f} s | {beside / alone:.1f} |", flush=True)


if __name__ == "__main__":
    main()
