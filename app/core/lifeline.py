"""Child processes that end with their parent, even if the parent is killed.

The parent holds the write end of the child's standard input. When the parent ends in any way, the pipe closes, and the
child sends itself SIGTERM.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def start_child(arguments: list[str], *, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start `gklbench ARGUMENTS` as a process that ends with this one; its output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            # -P: import nothing from the current directory.
            [sys.executable, "-P", "-m", "app.cli", *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            # Ctrl-C goes to all processes of the terminal's group; in a session of its own, the parent decides when the
            # child stops.
            start_new_session=True,
        )


def end_with_parent() -> None:
    """Call this in the child: it watches the pipe, and sends this process SIGTERM when it closes."""

    def watch() -> None:
        # Not through sys.stdin: this thread would hold its lock while the interpreter shuts down.
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def end_with_process() -> None:
    """Call this in a process that a library started: it gets SIGTERM when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, "told of its parent's end")


def hide_from_processes_of_this_user() -> None:
    """Hide this process's memory and environment, which contain addresses and secrets, from the runs that it starts.

    Runs have the same user and read files from strangers. The processes that this one starts are not hidden
    themselves.
    """
    _prctl(_PR_SET_DUMPABLE, 0, "hidden from others")


def _prctl(option: int, value: int, what: str) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        _log.warning("this process cannot be %s (%s)", what, os.strerror(ctypes.get_errno()))
