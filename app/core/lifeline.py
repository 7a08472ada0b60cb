"""Processes that end with the one that started them, even if that one is killed.

The parent holds the write end of the child's standard input. When the parent is gone, however it went, the
pipe closes and the child tells itself to stop.
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
            # -P: nothing is imported from the directory in which the command happens to run.
            [sys.executable, "-P", "-m", "app.cli", *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            # Ctrl-C goes to the terminal's whole group: the parent decides the order of stopping instead.
            start_new_session=True,
        )


def end_with_parent() -> None:
    """Called in the child: watch the pipe, and send this process SIGTERM when it closes."""

    def watch() -> None:
        # Not through sys.stdin: its lock would be held here when the interpreter wants to shut down.
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def end_with_process() -> None:
    """Called in a process that a library started: it is told to stop when the one that started it is gone."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, "told of its parent's end")


def hide_from_processes_of_this_user() -> None:
    """Keep this process's memory and environment, with the addresses and secrets in them, from the runs it starts.

    They have the same user, but may read what strangers sent. A process that it starts is not hidden, nor kept from
    anything by this.
    """
    _prctl(_PR_SET_DUMPABLE, 0, "hidden from others")


def _prctl(option: int, value: int, what: str) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        _log.warning("this process cannot be %s (%s)", what, os.strerror(ctypes.get_errno()))
