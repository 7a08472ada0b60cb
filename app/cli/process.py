"""Starting and stopping the processes of a deployment."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

from app.cli.terminal import SettingsError, environment_settings
from app.core import logs, tracing
from app.core.lifeline import end_with_parent, end_with_process, hide_from_processes_of_this_user
from app.core.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI


def begin(*, end_with_parent_too: bool) -> Settings:
    """Read the settings, set up logging, and hide this process's memory from the runs that it starts."""
    settings = environment_settings()
    logs.configure(settings.log_format)
    hide_from_processes_of_this_user()
    if settings.tracing:
        try:
            tracing.configure()
        except ImportError as error:
            raise SettingsError("GKLBENCH_TRACING needs more packages: pip install 'gklbench[otel]'") from error
    if end_with_parent_too:
        end_with_parent()
    return settings


def make_app() -> FastAPI:
    """Make the API's application in one of several processes that uvicorn starts for `gklbench serve`."""
    from app.main import create_app  # noqa: PLC0415 - most processes serve nothing

    end_with_process()
    return create_app(begin(end_with_parent_too=False))


def stop_flag() -> threading.Event:
    """An event that Ctrl-C or SIGTERM sets, so that work stops between two steps and not within one."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
