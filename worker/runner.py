"""`python -m worker.runner`: one run in a process of its own. It uses neither Celery nor the database.

Standard input: one JSON line with the order (`RunOrder`). Nothing follows; when the stream closes, the supervisor has
ended. Standard output: JSON lines with events, and an ending as the last one (`gkl.outcome`). Standard error: the log.
On SIGTERM the run stops at its next step and reports `Interrupted`.
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

from pydantic import BaseModel, ConfigDict

from gkl import run_log
from gkl.conversion import convert
from gkl.errors import FailureCode, GklError, Stopped
from gkl.formats.weights_format import weights_format
from gkl.outcome import Ending, Failed, Interrupted, Resources, ShardOutcome, WeightsConverted
from gkl.run_context import RunContext
from gkl.spec import BaseTrainSpec, ExternalSpec, ReportSpec, RunSpec, TransferSpec

_log = logging.getLogger("worker.runner")

CERTIFICATE_FILE, EXAMPLES_FILE = "known.safetensors", "examples.safetensors"
"""File names in the run's directory: the certificate, and the examples, that a check starts from."""
SOURCE_FILE = "source.safetensors"
"""File name of another network's certificate, whose examples a transfer tries."""
CONVERTED_FILE = "converted/weights.safetensors"
"""File name of weights converted from a state dict of torch.save."""

_MEASURE_SECONDS = 5.0


class RunOrder(BaseModel):
    """What a runner has to do, and where its files are."""

    model_config = ConfigDict(frozen=True)

    spec: RunSpec
    shard_index: int | None = None
    """Which of the spec's shards to run, counted from 0; null for the whole evaluation."""
    directory: Path
    """The run's directory, with its input files and everything that it writes."""
    datasets_dir: Path
    models_dir: Path | None = None
    """RobustBench's folder of published weights."""
    weights: str | None = None
    """File name in the directory of the network to evaluate, or of a distillation's teacher; null for published
    weights, and for a training without a teacher."""
    converted: str | None = None
    """File name of the weights as an earlier run has converted them, in the directory."""
    others: tuple[Path, ...] = ()
    """Certificates of other networks, whose adversarial examples an evaluation tries."""
    checkpoint_seconds: float = 0.0
    """The least time in seconds between two checkpoints of a training."""

    def context(self, send: Callable[[BaseModel], None], should_stop: Callable[[], bool]) -> RunContext:
        """The context of the run; `send` is called with every event."""
        return RunContext(
            directory=self.directory,
            datasets_dir=self.datasets_dir,
            models_dir=self.models_dir,
            report=send,
            should_stop=should_stop,
        )

    def in_directory(self, name: str | None) -> Path | None:
        return None if name is None else self.directory / name


def main() -> None:
    # Standard output is for messages only; what libraries print goes to the log.
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    run_log.configure()
    # This library logs every parameter that it sets.
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

    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_supervisor, daemon=True).start()
    ending = _run(told, send, stop.is_set)
    write(_resources())
    write(ending)


def _run(told: object, send: Callable[[BaseModel], None], should_stop: Callable[[], bool]) -> Ending:
    try:
        order = RunOrder.model_validate(told)
        return _execute(order, order.context(send, should_stop))
    except Stopped:
        return Interrupted()
    except GklError as error:
        _log.error("%s: %s", error.code, error)
        return Failed(code=error.code, message=str(error))
    except Exception as error:  # noqa: BLE001 - logged, and reported to the supervisor
        _log.exception("the run failed")
        return Failed(
            code=FailureCode.INTERNAL,
            message=f"{type(error).__name__}: {error}; the job's log has the whole trace",
        )


def _execute(order: RunOrder, context: RunContext) -> Ending:
    spec, directory = order.spec, order.directory
    # Imported here, so that an invalid order is refused before the seconds that importing torch takes.
    weights = order.in_directory(order.weights)
    if isinstance(spec, BaseTrainSpec):
        with _nothing_to_collect():
            from gkl.training import train  # noqa: PLC0415

        return train(
            spec,
            context,
            teacher=weights,
            converted_teacher=order.in_directory(order.converted) or _converted(weights, context),
            least_checkpoint_seconds=order.checkpoint_seconds,
        )
    with _nothing_to_collect():
        from gkl.evaluation import Shard, check_report, evaluate, evaluate_shard, measure_transfer, merge_examples  # noqa: PLC0415

    if isinstance(spec, ReportSpec):
        return check_report(spec, directory / CERTIFICATE_FILE, context)
    converted = order.in_directory(order.converted) or _converted(weights, context)
    if isinstance(spec, ExternalSpec):
        certificate, examples = directory / CERTIFICATE_FILE, directory / EXAMPLES_FILE
        return merge_examples(spec, certificate, examples, weights, context, converted=converted)
    if isinstance(spec, TransferSpec):
        source, certificate = directory / SOURCE_FILE, directory / CERTIFICATE_FILE
        return measure_transfer(spec, source, certificate, weights, context, converted=converted)
    if order.shard_index is None:
        return evaluate(spec, weights, context, converted=converted, others=order.others)
    started = time.perf_counter()
    evaluate_shard(spec, weights, context, Shard(order.shard_index, spec.evaluation.shards), converted=converted)
    return ShardOutcome(seconds=time.perf_counter() - started)


def _converted(weights: Path | None, context: RunContext) -> Path | None:
    """Convert weights that came as a state dict of torch.save and report it; None if there is nothing to convert."""
    if weights is None or weights_format(weights) != "torch":
        return None
    converted = context.directory / CONVERTED_FILE
    # In a folder of its own: the confined process that reads a stranger's file can write nowhere else.
    converted.parent.mkdir()
    convert(weights, converted, report=context.report, should_stop=context.should_stop)
    context.report(WeightsConverted(file=CONVERTED_FILE))
    return converted


@contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """Disable garbage collection while libraries are imported: it frees nothing and takes a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _resources() -> Resources:
    """Memory and CPU time that this process has used; GPU memory only if the run uses CUDA."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    # Not ru_maxrss, which starts with the memory of the process that started this one.
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
    """End this process as soon as the supervisor has ended. A later attempt resumes from the last checkpoint."""
    # Not through sys.stdin: this thread would hold its lock, which the interpreter needs to shut down.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
