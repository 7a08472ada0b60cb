"""The commands that exchange files with RobustBench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.extras import needs
from app.cli.terminal import (
    DataDir,
    console,
    own_database,
)
from app.core import formatting

if TYPE_CHECKING:
    pass


robustbench_cli = typer.Typer()


@robustbench_cli.command("import-robustbench")
@needs("server")
def import_robustbench(
    path: Annotated[Path, typer.Argument(help="A RobustBench checkout, its model_info, or a folder or file in it.")],
    data_dir: DataDir = None,
) -> None:
    """Import RobustBench's published entries. The same files again change nothing.

    Irregularities in a file are kept and listed.

    Example: `gklbench import-robustbench robustbench/model_info`
    """
    from app.boards.robustbench import find_files, import_files, name_of  # noqa: PLC0415

    files = find_files(path)
    report = import_files(own_database(data_dir), ((name_of(file), file.read_bytes()) for file in files))
    for anomaly in report.anomalies:
        field = f" {anomaly.field}" if anomaly.field else ""
        line = formatting.visible(f"{anomaly.file}:{field} {anomaly.what}")
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{report.added} added, {report.changed} changed, {report.unchanged} unchanged, {report.refused} refused; "
        f"{len(report.anomalies)} irregularities.",
        soft_wrap=True,
        highlight=False,
    )
    raise typer.Exit(1 if report.refused else 0)


@robustbench_cli.command("export-robustbench")
@needs("server")
def export_robustbench(
    out: Annotated[Path, typer.Argument(help="Folder for <data set>/<threat model>/<model id>.json.")],
    data_dir: DataDir = None,
) -> None:
    """Write every entry with a final verdict in RobustBench's format; imported ones unchanged.

    Example: `gklbench export-robustbench model_info`
    """
    from app.boards.robustbench_export import export_to  # noqa: PLC0415

    with own_database(data_dir).reading() as session:
        written = export_to(session, out)
    console.print(f"{written} entries are in {out}.", highlight=False)
