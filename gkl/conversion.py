"""Converts an untrusted state dict of torch.save to safetensors, in a confined process.

`python -m gkl.conversion SOURCE TARGET` is that process: it imports torch, confines itself
(`gkl.formats.confinement`), and only then opens the file.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from gkl import run_log
from gkl.errors import FailureCode, InvalidInput, NoSpaceLeft, OutOfMemory, Stopped
from gkl.formats.torch_archive import check_torch_file
from gkl.outcome import Event, Failed, Progress

_log = logging.getLogger(__name__)

# Limit of processor time: a minute to import torch on a busy host, plus the file's size at 10 MB/s.
_FIXED_SECONDS, _BYTES_PER_SECOND = 60, 10e6
# Limit of wall-clock time per second of processor time. It is larger, since waiting for a slow disk uses no processor.
_WALL_PER_CPU = 5
# Memory limit in file sizes: the tensors are held as read, as copied and as serialized; one more is in reserve.
_COPIES, _FIXED_BYTES = 4, 1024**3
# Limit of the written file in file sizes. Number formats are kept, so a file grows only if tensors shared memory in it,
# since each of them is written separately.
_GROWTH, _FIXED_FILE_BYTES = 2, 64 * 1024**2
_ANSWER_BYTES = 64 * 1024
_REPORT_SECONDS = 5.0
_ADVICE = "save the weights with safetensors.torch.save_model(model, path) and send that"


def convert(
    source: Path,
    target: Path,
    *,
    report: Callable[[Event], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    seconds: float | None = None,
) -> None:
    """Convert a file of torch.save to safetensors, keeping the tensors' names and number formats.

    All tensors are kept: if the file holds several networks, the reader of `target` chooses one
    (`gkl.formats.weights_file`).

    Args:
        source: a file of torch.save.
        target: the file to write. The process may overwrite any file in the directory of `target`.
        report: called with progress every few seconds.
        should_stop: called several times a second; once it returns True, the conversion ends with `Stopped`.
        seconds: limit of wall-clock time; the default is long enough for a slow disk.

    Raises:
        InvalidInput: the file is not a plain state dict, or reading it takes too much memory or time for its size.
        NoSpaceLeft: the disk is full.
        OutOfMemory: the process was killed from outside.
        Stopped: `should_stop` returned True.
    """
    check_torch_file(source)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "gkl.conversion", str(source), str(target)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        # The process gets only the import paths and a single thread, since Landlock does not confine threads that are
        # already running.
        env={
            **{name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ},
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    assert process.stdout is not None
    try:
        _wait(process, source, report, should_stop, seconds or _WALL_PER_CPU * _cpu_seconds(source))
        _judge(source, target, process.returncode, os.read(process.stdout.fileno(), _ANSWER_BYTES))
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _wait(
    process: subprocess.Popen[bytes],
    source: Path,
    report: Callable[[Event], None],
    should_stop: Callable[[], bool],
    seconds: float,
) -> None:
    deadline, last_report = time.monotonic() + seconds, -math.inf
    while process.poll() is None:
        if should_stop():
            raise Stopped
        if time.monotonic() > deadline:
            raise InvalidInput(f"reading {source.name} took more than {seconds:.0f} seconds; {_ADVICE}")
        if time.monotonic() - last_report > _REPORT_SECONDS:
            last_report = time.monotonic()
            report(Progress(stage="converting the weights", fraction=0.0))
        time.sleep(0.05)
    if should_stop():
        # A signal to the process group ends the child too. Its exit status then says nothing about the file.
        raise Stopped


def _judge(source: Path, target: Path, returncode: int, answer: bytes) -> None:
    """Raise the error that explains how the process ended, if it failed.

    Args:
        source: the file that was converted.
        target: the file that the process should have written.
        returncode: the process's exit status, or minus the signal that ended it.
        answer: what it wrote to standard output: a `Failed` as JSON if it failed.

    Raises:
        InvalidInput, NoSpaceLeft, OutOfMemory: the process failed.
    """
    name = source.name
    if returncode == 0:
        if target.is_symlink() or not target.is_file():
            raise InvalidInput(f"converting {name} wrote no file; {_ADVICE}")
        return
    if returncode == -signal.SIGXCPU:
        raise InvalidInput(f"reading {name} took too much processor time for a file of its size; {_ADVICE}")
    if returncode == -signal.SIGKILL:
        raise OutOfMemory(
            f"the process that read {name} was killed from outside (SIGKILL), as the kernel does when a host is out of "
            "memory; retry the job when more memory is free"
        )
    try:
        failed = Failed.model_validate_json(answer)
    except ValidationError:
        ended = f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"
        raise InvalidInput(f"the process that read {name} ended with {ended}; {_ADVICE}") from None
    raise (NoSpaceLeft if failed.code is FailureCode.NO_SPACE_LEFT else InvalidInput)(failed.message[:1000])


def _cpu_seconds(source: Path) -> int:
    return int(_FIXED_SECONDS + source.stat().st_size / _BYTES_PER_SECOND)


# --- in the process ----------------------------------------------------------------------------------------------


def _main(source: Path, target: Path) -> NoReturn:
    # Imported before the confinement: afterwards the imports would count against its limits, or be refused.
    import torch  # noqa: PLC0415

    from gkl.device import is_out_of_memory  # noqa: PLC0415
    from gkl.formats.confinement import Limits, confine  # noqa: PLC0415
    from gkl.formats.weights_file import convert_state_dict  # noqa: PLC0415

    run_log.configure()
    torch.set_num_threads(1)
    size = source.stat().st_size
    confine(
        Limits(
            memory_bytes=_COPIES * size + _FIXED_BYTES,
            cpu_seconds=_cpu_seconds(source),
            file_bytes=_GROWTH * size + _FIXED_FILE_BYTES,
        ),
        target.parent,
    )
    try:
        convert_state_dict(source, target)
    except (InvalidInput, NoSpaceLeft) as error:
        failed = Failed(code=error.code, message=str(error))
    except Exception as error:  # noqa: BLE001 - logged, and reported to the parent process
        _log.exception("the conversion failed")
        is_short = isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error)
        # safetensors raises the same class for all errors. Its text contains the operating system's message.
        if is_short or isinstance(error, OutOfMemory) or os.strerror(errno.EFBIG) in str(error):
            what = f"needs too much memory or disk space for a file of its size; {_ADVICE}"
        else:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            what = f"cannot be saved as safetensors ({reason:.200}); save the network's tensors alone, as real numbers"
        failed = Failed(code=FailureCode.INVALID_INPUT, message=f"{source.name} {what}")
    else:
        # Skips the cleanup of a regular exit, which takes a second with torch.
        os._exit(0)
    os.write(1, failed.model_dump_json().encode())
    os._exit(1)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
