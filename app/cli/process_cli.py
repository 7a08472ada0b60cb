"""The commands of a deployment: one for each process, migrations, and checks."""

from __future__ import annotations

import logging
import os
import re
import socket
import tempfile
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.extras import needs
from app.cli.terminal import DataDir, SettingsError, console, environment_settings, own_database, settings_of

if TYPE_CHECKING:
    from app.core.settings import Settings

_log = logging.getLogger(__name__)

process_cli = typer.Typer()

EndWithParent = Annotated[bool, typer.Option("--end-with-parent", hidden=True)]


class Part(StrEnum):
    """The parts of a service that a host may run."""

    API = "api"
    WORKER = "worker"
    RELAY = "relay"


@process_cli.command()
@needs("server")
def serve(end_with_parent: EndWithParent = False) -> None:
    """Run only the API and the pages, without broker, worker and relay. Configured by GKLBENCH_ variables.

    Example: `GKLBENCH_DATABASE_URL=postgresql://... GKLBENCH_BROKER_URL=redis://... gklbench serve`
    """
    import uvicorn  # noqa: PLC0415

    from app.accounts import tokens  # noqa: PLC0415
    from app.cli import process  # noqa: PLC0415
    from app.db.database import Database  # noqa: PLC0415

    settings = process.begin(end_with_parent_too=end_with_parent)
    _check_schema(settings)
    database = Database(settings.effective_database_url)
    tokens.check_start(database, settings)
    database.close()
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        # Open event streams must not hold up a stop.
        "timeout_graceful_shutdown": 3,
        # `app.core.logs` has set up logging, and logs each request without its query string.
        "log_config": None,
        "access_log": False,
        "forwarded_allow_ips": settings.trusted_proxies,
        "limit_concurrency": settings.max_connections,
        "server_header": False,
    }
    if settings.api_processes == 1:
        from app.main import create_app  # noqa: PLC0415

        uvicorn.run(create_app(settings), **options)
        return
    with tempfile.TemporaryDirectory(prefix="gklbench-metrics-") as shared:
        # So that the process that answers a scrape reports the requests of all processes.
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", shared)
        uvicorn.run(
            "app.cli.process:make_app",
            factory=True,
            workers=settings.api_processes,
            # By default a process that computes for five seconds counts as dead.
            timeout_worker_healthcheck=60,
            **options,
        )


@process_cli.command()
@needs("worker")
def worker(end_with_parent: EndWithParent = False) -> None:
    """Run one worker: it claims jobs and runs them, one at a time. Start one per GPU.

    Example: `CUDA_VISIBLE_DEVICES=1 GKLBENCH_DATABASE_URL=... GKLBENCH_BROKER_URL=... gklbench worker`
    """
    from app.cli import process  # noqa: PLC0415
    from worker.celery_app import run_worker  # noqa: PLC0415

    settings = process.begin(end_with_parent_too=end_with_parent)
    _check_schema(settings)
    run_worker(settings)


@process_cli.command()
@needs("server")
def relay(end_with_parent: EndWithParent = False) -> None:
    """Run the relay: it publishes lost wake-up messages again, takes jobs from lost workers, and cleans up.

    Example: `GKLBENCH_DATABASE_URL=... GKLBENCH_BROKER_URL=... gklbench relay`
    """
    from app.cli import process  # noqa: PLC0415
    from app.http.service import Service  # noqa: PLC0415
    from app.maintenance.relay import Relay  # noqa: PLC0415

    settings = process.begin(end_with_parent_too=end_with_parent)
    _check_schema(settings)
    Relay(Service.from_settings(settings)).run(process.stop_flag())


def _check_schema(settings: Settings) -> None:
    """Check that the database has this version's schema; skipped while the database is down.

    Raises:
        SettingsError: it has another version's schema.
    """
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from app.db.database import Database  # noqa: PLC0415
    from app.db.migrations import is_current  # noqa: PLC0415

    database = Database(settings.effective_database_url)
    try:
        if not is_current(database):
            raise SettingsError("the database has another version's schema; run 'gklbench migrate' first")
    except SQLAlchemyError as error:
        _log.warning("the database cannot be used (%s)", getattr(error, "orig", error))
    finally:
        database.close()


@process_cli.command(hidden=True)
def broker(port: Annotated[int, typer.Option()], end_with_parent: EndWithParent = False) -> None:
    """Run the embedded broker."""
    from app.cli import process  # noqa: PLC0415
    from app.cli.embedded import run_broker  # noqa: PLC0415

    settings = process.begin(end_with_parent_too=end_with_parent)
    run_broker(port, settings.data_dir, process.stop_flag())


@process_cli.command()
@needs("server")
def migrate(
    back_to: Annotated[
        str | None, typer.Option(help="Downgrade to an older version's step, such as 0005, before installing it.")
    ] = None,
) -> None:
    """Upgrade the database's schema to this version. Run it before `serve`, `worker` and `relay`.

    Example: `GKLBENCH_DATABASE_URL=postgresql://user:secret@host/gklbench gklbench migrate`
    """
    from app.db import migrations  # noqa: PLC0415
    from app.db.database import Database  # noqa: PLC0415

    if back_to is None:
        own_database(None)
        console.print(f"The schema is up to date, at step {migrations.newest()}.")
        return
    if not migrations.knows(back_to):
        raise SettingsError(f"there is no step {back_to}; the first is 0001, the newest {migrations.newest()}")
    migrations.downgrade(Database(environment_settings().effective_database_url), back_to)
    console.print(f"The schema is at step {back_to}. Start the older version now, not this one.")


@process_cli.command("check-settings")
def check_settings() -> None:
    """Check the GKLBENCH_ variables before starting the service. Connects to nothing.

    Example: `GKLBENCH_BROKER_URL=redis://:changethis@redis:6379/0 gklbench check-settings`
    """
    _check_secrets(environment_settings())
    console.print("The settings are valid.")


def _check_secrets(settings: Settings) -> None:
    from urllib.parse import urlsplit  # noqa: PLC0415

    from sqlalchemy.engine import make_url  # noqa: PLC0415

    from app.core.settings import PLACEHOLDER  # noqa: PLC0415

    passwords = {
        "DATABASE_URL": make_url(settings.effective_database_url).password,
        "BROKER_URL": urlsplit(settings.broker_url).password,
    }
    for name, password in passwords.items():
        if password == "":
            raise SettingsError(f"GKLBENCH_{name} has an empty password; choose one")
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY")
    if secret == PLACEHOLDER or (settings.store_url and secret == ""):
        raise SettingsError("AWS_SECRET_ACCESS_KEY is empty or a placeholder; choose one")
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    if settings.store_url and not re.match(r"(https?://|$)", endpoint):
        raise SettingsError(f"AWS_ENDPOINT_URL must begin with http:// or https://, not {endpoint!r}")


@process_cli.command()
def health(part: Annotated[Part, typer.Argument(help="The part to check.")]) -> None:
    """Check whether a part of the service is healthy, for containers: exit status 0 if it is.

    `api`: this host's API is ready; `worker`: this host has a live worker; `relay`: any host has a live relay.

    Example: `gklbench health worker`
    """
    settings = environment_settings()
    problem = {Part.API: _api_problem, Part.WORKER: _worker_problem, Part.RELAY: _relay_problem}[part](settings)
    if problem is not None:
        raise SettingsError(problem)
    console.print(f"The {part} lives.")


def _api_problem(settings: Settings) -> str | None:
    import httpx2  # noqa: PLC0415

    try:
        # Ignore the environment's proxy.
        answer = httpx2.get(f"{settings.own_url}/readyz", timeout=10, trust_env=False)
    except httpx2.TransportError as error:
        return f"the API does not answer ({type(error).__name__})"
    return None if answer.status_code == 200 else f"the API is not ready: {answer.text[:500]}"


def _worker_problem(settings: Settings) -> str | None:
    from datetime import timedelta  # noqa: PLC0415

    from app.db.database import Database  # noqa: PLC0415
    from app.jobs import workers  # noqa: PLC0415

    host = socket.gethostname()
    with Database(settings.effective_database_url).reading() as session:
        found = workers.all_of_them(session, lease=timedelta(seconds=settings.lease_seconds))
    here = [status for status in found if status.row.host == host and not status.is_lost]
    if not here:
        return f"no worker of {host} sent a heartbeat in the last {settings.lease_seconds:.0f} seconds"
    return next((status.row.problem for status in here if status.row.problem), None)


def _relay_problem(settings: Settings) -> str | None:
    from app.jobs.broker import relay_is_running  # noqa: PLC0415

    heard = relay_is_running(settings)
    if heard is None:
        return "the broker does not answer"
    return None if heard else "no relay is running"


@process_cli.command()
@needs("server")
def storage(data_dir: DataDir = None) -> None:
    """Show disk usage of the data directory by kind and by submitter, and when each kind is removed.

    Example: `gklbench storage --data-dir ~/bench`
    """
    from rich.table import Table  # noqa: PLC0415

    from app.accounts import quotas  # noqa: PLC0415
    from app.core import formatting  # noqa: PLC0415
    from app.maintenance import storage as kept  # noqa: PLC0415

    settings = settings_of(data_dir, None)
    with own_database(data_dir).reading() as session:
        shares, owners = kept.shares(session, settings), quotas.kept_by_all(session)
    table = Table("Folder", "Size", box=None, title=str(settings.data_dir.resolve()), title_justify="left")
    for name, size_bytes in kept.folders(settings):
        table.add_row(name, formatting.size(size_bytes))
    console.print(table, "")
    table = Table("What is kept", "Number", "Size", "Removed", box=None)
    for share in shares:
        size = "" if share.size_bytes is None else formatting.size(share.size_bytes)
        table.add_row(share.title, str(share.number), size, share.goes or "stays")
    console.print(table, "")
    table = Table("Submitter", "Size that counts against their quota", box=None)
    for name, size_bytes in owners.items():
        table.add_row(name, formatting.size(size_bytes))
    console.print(table)
