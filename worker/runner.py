"""`python -m worker.runner`: one run, as a process of its own. Knows neither Celery nor the database.

Standard input: one JSON line with the order (`RunOrder`); then nothing, and its end means that the supervisor is gone.
Standard output: JSON lines, events and at last an ending (`gkl.outcome`). Standard error: the log. SIGTERM: stop at the
next step, with an `Interrupted`.
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
"""Names in the run's directory of what a check of somebody's certificate or examples starts from."""
SOURCE_FILE = "source.safetensors"
"""And of another network's certificate, whose examples are replayed."""
CONVERTED_FILE = "converted/weights.safetensors"
"""And of what was made of weights that came as a state dict of torch.save."""

_MEASURE_SECONDS = 5.0


class RunOrder(BaseModel):
    """What a runner is asked to do, and where."""

    model_config = ConfigDict(frozen=True)

    spec: RunSpec
    shard_index: int | None = None
    """Which of the spec's shards to run, counted from 0; null for the whole evaluation."""
    directory: Path
    """The run's own: given files are in it, and what the run writes."""
    datasets_dir: Path
    models_dir: Path | None = None
    """Where RobustBench keeps published weights."""
    weights: str | None = None
    """File name in the directory of the network to evaluate, or of a distillation's teacher; null for published
    weights, and for a training without a teacher."""
    converted: str | None = None
    """File name in the directory of what an earlier run converted the weights to."""
    others: tuple[Path, ...] = ()
    """Other networks' certificates, whose adversarial examples an evaluation tries."""
    checkpoint_seconds: float = 0.0
    """A training saves no checkpoints closer to each other than so."""

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
    # What libraries print goes to the log: standard output belongs to the messages.
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    run_log.configure()
    # It would log every parameter that it sets; a run reports its progress itself.
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
    except Exception as error:  # noqa: BLE001 - logged, and told to the supervisor
        _log.exception("the run failed")
        return Failed(
            code=FailureCode.INTERNAL,
            message=f"{type(error).__name__}: {error}; the job's log has the whole trace",
        )


def _execute(order: RunOrder, context: RunContext) -> Ending:
    spec, directory = order.spec, order.directory
    # Imported here: torch takes seconds, in which an order could already have been refused.
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
    # A folder of its own: nothing else can be written to by what reads a stranger's file.
    converted.parent.mkdir()
    convert(weights, converted, report=context.report, should_stop=context.should_stop)
    context.report(WeightsConverted(file=CONVERTED_FILE))
    return converted


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
    """End at once when the supervisor is gone. A later attempt resumes from the last checkpoint."""
    # Not through sys.stdin: its lock would be held here when the interpreter wants to shut down.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
