"""`python -m worker.runner`: one run, as a process of its own. Knows neither Celery nor the database.

Standard input: one JSON line with the order (spec, shard, directories, weights); then nothing, and its end means that
the supervisor is gone. Standard output: JSON lines, events and at last an ending (`gkl.outcome`). Standard
error: the log. SIGTERM: stop at the next step, with an `Interrupted`.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import platform
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gkl import run_log
from gkl.conversion import convert
from gkl.errors import FailureCode, GklError, Stopped
from gkl.formats.weights_format import weights_format
from gkl.outcome import Ending, Failed, Interrupted, Resources, ShardOutcome, WeightsConverted
from gkl.spec import RUN_SPEC, ExternalSpec, ReportSpec, TrainSpec, TransferSpec

_log = logging.getLogger("worker.runner")

CERTIFICATE_FILE, EXAMPLES_FILE = "known.safetensors", "examples.safetensors"
"""Names in the run's directory of what a check of somebody's certificate or examples starts from."""
SOURCE_FILE = "source.safetensors"
"""And of another network's certificate, whose examples are replayed."""
CONVERTED_FILE = "converted/weights.safetensors"
"""And of what was made of weights that came as a state dict of torch.save."""

_MEASURE_SECONDS = 5.0


def main() -> None:
    # What libraries print goes to the log: standard output belongs to the messages.
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    run_log.configure()
    # It tells of every parameter it sets; what a run reports is in its own words.
    logging.getLogger("auto-attack").setLevel(logging.WARNING)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def write(message: BaseModel) -> None:
        messages.write(message.model_dump_json() + "\n")

    last_measured = -math.inf

    def send(message: BaseModel) -> None:
        nonlocal last_measured
        write(message)
        if time.monotonic() - last_measured >= _MEASURE_SECONDS:
            last_measured = time.monotonic()
            write(_resources())

    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_supervisor, daemon=True).start()
    ending = _run(order, send, stop.is_set)
    write(_resources())
    write(ending)


def _run(order: dict[str, Any], send: Callable[[BaseModel], None], should_stop: Callable[[], bool]) -> Ending:
    try:
        return _execute(order, send, should_stop)
    except Stopped:
        return Interrupted()
    except GklError as error:
        _log.error("%s: %s", error.code, error)
        return Failed(code=error.code, message=str(error))
    except Exception as error:  # noqa: BLE001 - logged, and told to the supervisor
        _log.exception("the run failed")
        return Failed(
            code=FailureCode.INTERNAL,
            message=f"{type(error).__name__}: {error}; the job's log has the whole trace",
        )


def _execute(order: dict[str, Any], send: Callable[[BaseModel], None], should_stop: Callable[[], bool]) -> Ending:
    spec = RUN_SPEC.validate_python(order["spec"])
    directory, datasets_dir = Path(order["directory"]), Path(order["datasets_dir"])
    # Imported here: torch takes seconds, in which an order could already have been refused.
    if isinstance(spec, TrainSpec):
        with _nothing_to_collect():
            from gkl.training import train  # noqa: PLC0415

        return train(
            spec,
            directory,
            datasets_dir=datasets_dir,
            report=send,
            should_stop=should_stop,
            least_checkpoint_seconds=order["checkpoint_seconds"],
        )
    with _nothing_to_collect():
        from gkl.evaluation import Shard, check_report, evaluate, evaluate_shard, measure_transfer, merge_examples  # noqa: PLC0415

    if isinstance(spec, ReportSpec):
        certificate = directory / CERTIFICATE_FILE
        return check_report(spec, certificate, datasets_dir=datasets_dir, report=send, should_stop=should_stop)

    weights = None if order["weights"] is None else directory / order["weights"]
    converted = None if order["converted"] is None else directory / order["converted"]
    if weights is not None and converted is None and weights_format(weights) == "torch":
        converted = directory / CONVERTED_FILE
        # A folder of its own: nothing else can be written to by what reads a stranger's file.
        converted.parent.mkdir()
        convert(weights, converted, report=send, should_stop=should_stop)
        send(WeightsConverted(file=CONVERTED_FILE))
    options: dict[str, Any] = {
        "datasets_dir": datasets_dir,
        "models_dir": Path(order["models_dir"]),
        "report": send,
        "should_stop": should_stop,
        "converted": converted,
    }
    if isinstance(spec, ExternalSpec):
        certificate, examples = directory / CERTIFICATE_FILE, directory / EXAMPLES_FILE
        return merge_examples(spec, certificate, examples, weights, directory, **options)
    if isinstance(spec, TransferSpec):
        source, certificate = directory / SOURCE_FILE, directory / CERTIFICATE_FILE
        return measure_transfer(spec, source, certificate, weights, directory, **options)
    if order["shard_index"] is None:
        return evaluate(spec, weights, directory, others=[Path(path) for path in order["others"]], **options)
    started = time.perf_counter()
    evaluate_shard(spec, weights, directory, Shard(order["shard_index"], spec.evaluation.shards), **options)
    return ShardOutcome(seconds=time.perf_counter() - started)


@contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """While libraries are imported: they stay, and looking through them for garbage takes a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _resources() -> Resources:
    """What this process has used; asks CUDA only where the run does."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    # Not ru_maxrss: that begins with what the worker held when it started this process.
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    peak = re.search(r"VmHWM:\s*(\d+) kB", status)
    torch = sys.modules.get("torch")
    device, gpu_bytes = f"CPU ({platform.machine()}, {os.cpu_count()} cores)", None
    if torch is not None and torch.cuda.is_initialized():
        device, gpu_bytes = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
    return Resources(
        device=device,
        peak_memory_bytes=1024 * int(peak[1]) if peak else 0,
        peak_gpu_memory_bytes=gpu_bytes,
        cpu_seconds=used.ru_utime + used.ru_stime,
    )


def _die_with_supervisor() -> None:
    """End at once when nobody is left to report to; a later attempt goes on from the last checkpoint."""
    # Not through sys.stdin: its lock would be held here when the interpreter wants to shut down.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
