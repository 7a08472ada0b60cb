"""The commands that run the whole service on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.extras import needs
from app.cli.terminal import (
    DataDir,
    console,
    settings_of,
)

if TYPE_CHECKING:
    pass
from app.cli.specs import interrupt_on_signals

Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the API and the pages. Default: 8000.")]


service_cli = typer.Typer()


@service_cli.command()
@needs("server", "worker", "embedded")
def up(data_dir: DataDir = None, port: Port = None) -> None:
    """Run the whole service on this machine until Ctrl-C: API, pages, broker, worker, with SQLite as database.

    Example: `gklbench up --data-dir ~/bench --port 8080`
    """
    from app.cli.embedded import EmbeddedService  # noqa: PLC0415

    interrupt_on_signals()
    try:
        with EmbeddedService(settings_of(data_dir, port)) as service:
            console.print(f"GKL Bench is running at [bold]{service.url}[/bold]")
            console.print(f"Data is in {service.settings.data_dir.resolve()}. Ctrl-C stops it.", highlight=False)
            service.wait()
    except KeyboardInterrupt:
        console.print("Stopped.")


@service_cli.command()
@needs("server", "worker", "embedded")
def demo(
    data_dir: Annotated[Path, typer.Option(help="Directory of all data.")] = Path("demo-data"),
    port: Port = None,
    leave: Annotated[bool, typer.Option("--exit", help="Exit after the result instead of serving on.")] = False,
) -> None:
    """Start the service, train and attack a small network over REST, and show its row.

    Example: `gklbench demo --exit`
    """
    from app.cli.embedded import EmbeddedService  # noqa: PLC0415
    from app.cli.follow import run_and_show  # noqa: PLC0415
    from gkl.recipes import recipe as find_recipe  # noqa: PLC0415

    interrupt_on_signals()
    ok: bool | None = None
    try:
        with EmbeddedService(settings_of(data_dir, port)) as service:
            console.print(f"GKL Bench is running at [bold]{service.url}[/bold]")
            ok = run_and_show(service.url, find_recipe("digits"), console)
            if not leave:
                console.print(f"The service keeps running at [bold]{service.url}[/bold]. Ctrl-C stops it.")
                service.wait()
    except KeyboardInterrupt:
        console.print("Stopped.")
    # 130 is the usual exit status after Ctrl-C.
    raise typer.Exit(130 if ok is None else 0 if ok else 1)
