"""A state dict of torch.save from a stranger becomes safetensors, once, in a process that could do no harm.

`python -m gkl.conversion SOURCE TARGET` is that process: it imports torch, gives up what it does not need
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

# Reading and writing at 10 MB/s at least, after torch was imported on a busy host.
_FIXED_SECONDS, _BYTES_PER_SECOND = 60, 10e6
# A slow disk takes no processor time.
_WALL_PER_CPU = 5
# The tensors as read, as laid out to be written, and as they are written, with room for a fourth.
_COPIES, _FIXED_BYTES = 4, 1024**3
# Half precision is kept as it is, so that only what is stored once and used twice grows.
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
    """Write the tensors of what torch.save wrote as safetensors, with their own names and number formats.

    All of them: which of several networks in it is meant, the one who reads `target` says (`gkl.formats.weights_file`).

    Args:
        source: what torch.save wrote.
        target: the file to be written, in a directory that holds nothing which must not be overwritten.
        report: called every few seconds.
        should_stop: asked several times a second; when it says yes the conversion ends with `Stopped`.
        seconds: how long it may take; by default so long that a slow disk suffices.

    Raises:
        InvalidInput: the file is no plain state dict, or takes more memory or time than one of its size may.
        NoSpaceLeft: the disk is full.
        OutOfMemory: the process was killed from outside.
        Stopped: `should_stop` said yes.
    """
    check_torch_file(source)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "gkl.conversion", str(source), str(target)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        # Where it imports from, and one thread: others would keep what this one gives up.
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
            raise InvalidInput(f"{source.name} took more than {seconds:.0f} seconds to be read; {_ADVICE}")
        if time.monotonic() - last_report > _REPORT_SECONDS:
            last_report = time.monotonic()
            report(Progress(stage="converting the weights", fraction=0.0))
        time.sleep(0.05)
    if should_stop():
        # Who is told to stop has its children told too.
        raise Stopped


def _judge(source: Path, target: Path, returncode: int, answer: bytes) -> None:
    """
    Raises:
        InvalidInput, NoSpaceLeft, OutOfMemory: the process did not end as it should, in words.
    """
    name = source.name
    if returncode == 0:
        if target.is_symlink() or not target.is_file():
            raise InvalidInput(f"{name} left no file when it was read; {_ADVICE}")
        return
    if returncode == -signal.SIGXCPU:
        raise InvalidInput(f"{name} took more processor time to be read than a file of its size may; {_ADVICE}")
    if returncode == -signal.SIGKILL:
        raise OutOfMemory(
            f"the process that read {name} was killed from outside (SIGKILL), as the kernel does when a host is out of "
            "memory; retry the job when there is more"
        )
    try:
        failed = Failed.model_validate_json(answer)
    except ValidationError:
        ended = f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"
        raise InvalidInput(f"{name} ended the process that read it with {ended}; {_ADVICE}") from None
    raise (NoSpaceLeft if failed.code is FailureCode.NO_SPACE_LEFT else InvalidInput)(failed.message[:1000])


def _cpu_seconds(source: Path) -> int:
    return int(_FIXED_SECONDS + source.stat().st_size / _BYTES_PER_SECOND)


# --- in the process ----------------------------------------------------------------------------------------------


def _main(source: Path, target: Path) -> NoReturn:
    # All of it now: later it would count as the file's, and need what is given up.
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
    except Exception as error:  # noqa: BLE001 - logged, and told to who asked for it
        _log.exception("the conversion failed")
        is_short = isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error)
        # safetensors has one error for everything, whose text is the system's.
        if is_short or isinstance(error, OutOfMemory) or os.strerror(errno.EFBIG) in str(error):
            what = f"takes more room to be read than a file of its size may; {_ADVICE}"
        else:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            what = f"holds what safetensors cannot ({reason:.200}); save the network's tensors alone, as real numbers"
        failed = Failed(code=FailureCode.INVALID_INPUT, message=f"{source.name} {what}")
    else:
        # Taking torch down in order takes a second.
        os._exit(0)
    os.write(1, failed.model_dump_json().encode())
    os._exit(1)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
