"""Shared by the commands: the console, the settings, this machine's database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from app.core.settings import Settings
    from app.db.database import Database

console = Console()
errors = Console(stderr=True)

Url = Annotated[str, typer.Option(envvar="GKLBENCH_URL", show_envvar=True, help="Address of the service.")]
ClientToken = Annotated[
    str | None, typer.Option(envvar="GKLBENCH_TOKEN", show_envvar=True, help="Token, if the service requires one.")
]
JobNumber = Annotated[int, typer.Argument(metavar="JOB", min=1, help="The job's number.")]
DataDir = Annotated[Path | None, typer.Option(help="Directory of all data. Default: gklbench-data.")]


class CommandError(Exception):
    """A command cannot be carried out; the message says why and what to do."""


class SettingsError(CommandError):
    """A setting or an option is not valid."""


def settings_of(data_dir: Path | None, port: int | None) -> Settings:
    given = {"data_dir": data_dir, "port": port}
    return environment_settings().model_copy(update={name: value for name, value in given.items() if value is not None})


def environment_settings() -> Settings:
    from pydantic import ValidationError  # noqa: PLC0415

    from app.core.settings import Settings  # noqa: PLC0415

    try:
        return Settings()
    except ValidationError as error:
        from gkl.field_errors import field_problems  # noqa: PLC0415

        problems = [
            f"GKLBENCH_{p.location.upper()}: {p.message}" if p.location else p.message
            for p in field_problems(error.errors(), Settings)
        ]
        raise SettingsError(" ".join(problems)) from error


def own_database(data_dir: Path | None) -> Database:
    """This machine's database, or the one in GKLBENCH_DATABASE_URL, upgraded to this version's schema."""
    from app.db.database import Database  # noqa: PLC0415
    from app.maintenance.upgrading import upgrade  # noqa: PLC0415

    settings = settings_of(data_dir, None)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    # A migration may take long, and the user can stop it with Ctrl-C.
    database = Database(settings.effective_database_url, patience_seconds=3600)
    upgrade(database)
    return database
