"""Commands that only read: lists, the status and log of a job, a board, and the doctor."""

from __future__ import annotations

import codecs
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.extras import is_installed
from app.cli.terminal import ClientToken, DataDir, JobNumber, Url, console, settings_of
from app.core import formatting
from app.core.formatting import visible

if TYPE_CHECKING:
    from pydantic import BaseModel

    from gkl.answers import JobView
    from gkl.client import Client

look_cli = typer.Typer()

_POLL_SECONDS = 1.0

AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


class Listed(StrEnum):
    """What can be listed."""

    JOBS = "jobs"
    BOARDS = "boards"
    WORKERS = "workers"
    DATASETS = "datasets"
    ARCHITECTURES = "architectures"
    RECIPES = "recipes"


class BoardFormat(StrEnum):
    """The output formats of a board."""

    TABLE = "table"
    MARKDOWN = "markdown"
    CSV = "csv"
    JSON = "json"


@look_cli.command("list")
def list_(
    what: Annotated[Listed, typer.Argument(help="What to list. The last three need no running service.")],
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many jobs, the newest first.")] = 20,
    as_json: AsJson = False,
    url: Url = "http://127.0.0.1:8000",
    token: ClientToken = None,
) -> None:
    """List what a service has or knows.

    Example: `gklbench list jobs --limit 5`
    """
    if what in (Listed.DATASETS, Listed.ARCHITECTURES, Listed.RECIPES):
        found = _of_the_catalog(what)
    else:
        from gkl.client import Client  # noqa: PLC0415 - lists of the catalog need no client

        with Client(url, token) as client:
            found = [each.model_dump(mode="json") for each in _of_the_service(client, what, limit)]
    if as_json:
        _print_json(found)
        return
    if not found:
        console.print(f"There are no {what.value} yet.")
        return
    columns = _COLUMNS[what]
    shown = [[_shown(row, column) for column in columns] for row in found]
    _print_table(columns, _in_groups(found, shown) if what is Listed.RECIPES else shown)


def _in_groups(found: Sequence[dict[str, Any]], shown: Sequence[list[str]]) -> Iterator[list[str]]:
    """The rows of recipes, indented under a row with the heading of each group."""
    pairs = zip(found, shown, strict=True)
    for number, ((kind, group), rows) in enumerate(
        groupby(pairs, key=lambda pair: (pair[0]["kind"], pair[0]["group"]))
    ):
        if number:
            yield []
        yield [f"{kind}: {group}"]
        yield from ([f"  {name}", *rest] for _, (name, *rest) in rows)


_COLUMNS: dict[Listed, tuple[str, ...]] = {
    Listed.JOBS: ("id", "kind", "name", "state", "submitter", "progress", "created_at"),
    Listed.BOARDS: ("dataset", "threat_model", "num_entries"),
    Listed.WORKERS: ("name", "state", "device", "job_id", "problem"),
    Listed.DATASETS: ("name", "title", "num_classes", "num_test"),
    Listed.ARCHITECTURES: ("name", "title"),
    Listed.RECIPES: ("name", "title"),
}


def _of_the_service(client: Client, what: Listed, limit: int) -> Iterable[BaseModel]:
    if what is Listed.JOBS:
        return client.jobs(limit=limit)
    return client.boards() if what is Listed.BOARDS else client.workers()[:limit]


def _of_the_catalog(what: Listed) -> list[dict[str, Any]]:
    """The rows that the service's API would return."""
    from pydantic import TypeAdapter  # noqa: PLC0415

    from gkl.catalog import ARCHITECTURES, DATASETS, Architecture, Dataset  # noqa: PLC0415
    from gkl.recipes import listed_recipes  # noqa: PLC0415

    if what is Listed.DATASETS:
        return [TypeAdapter(Dataset).dump_python(each, mode="json") for each in DATASETS.values()]
    if what is Listed.ARCHITECTURES:
        return [TypeAdapter(Architecture).dump_python(each, mode="json") for each in ARCHITECTURES.values()]
    return [each._asdict() for each in listed_recipes()]


def _shown(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if column == "progress" and value is not None:
        return f"{100 * value['fraction']:.0f} % {value['stage']}"
    if column.endswith("_at") and isinstance(value, str):
        return value.replace("T", " ")[:16]
    return "" if value is None else visible(str(value))


@look_cli.command()
def status(
    job_id: JobNumber, as_json: AsJson = False, url: Url = "http://127.0.0.1:8000", token: ClientToken = None
) -> None:
    """Show a job's state, progress and result. Exit status 1 if it failed.

    Example: `gklbench status 12`
    """
    from gkl.client import Client  # noqa: PLC0415

    with Client(url, token) as client:
        job = client.job(job_id)
    if as_json:
        _print_json(job.model_dump(mode="json"))
    else:
        for line in _lines(job, f"{client.url}/jobs/{job.id}"):
            console.print(line, highlight=False, markup=False)
    if job.failure is not None:
        raise typer.Exit(1)


def _lines(job: JobView, address: str) -> Iterator[str]:
    yield f"Job {job.id}, {job.kind}: {visible(job.name)}"
    where = f", attempt {job.attempt} on {job.worker}" if job.worker else ""
    yield f"  {job.state}{where}"
    if job.progress is not None and not job.state.is_final:
        left = job.progress.seconds_left
        parts = [f"{100 * job.progress.fraction:.0f} % done", job.progress.stage, job.progress.detail]
        parts.append("" if left is None else f"about {formatting.duration(left)} left")
        yield f"  {', '.join(part for part in parts if part)}"
    if job.run_seconds:
        yield f"  {formatting.duration(job.run_seconds)} on workers"
    if job.failure is not None:
        yield f"  {job.failure.code}: {visible(job.failure.message)}"
    for other in job.child_ids:
        yield f"  followed by job {other}"
    yield f"  {address}"


@look_cli.command()
def logs(
    job_id: JobNumber,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job ends.")] = False,
    url: Url = "http://127.0.0.1:8000",
    token: ClientToken = None,
) -> None:
    """Print the log of a job's runs.

    Example: `gklbench logs 12 -f`
    """
    from gkl.client import Client  # noqa: PLC0415

    with Client(url, token) as client:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for text in _written(client, job_id, follow=follow):
            # A run's output may contain texts of strangers: the terminal must not execute control characters in it.
            sys.stdout.write(visible(decoder.decode(text)))
            sys.stdout.flush()


def _written(client: Client, job_id: int, *, follow: bool) -> Iterator[bytes]:
    offset = 0
    while True:
        # Read the state before the log: then the log is complete once the job has ended.
        has_ended = not follow or client.job(job_id).state.is_final
        part = client.log(job_id, offset)
        offset = part.end
        yield part.content
        if has_ended:
            return
        time.sleep(_POLL_SECONDS)


@look_cli.command()
def board(
    dataset: Annotated[str, typer.Argument(help="Such as cifar10.")],
    threat_model: Annotated[
        str, typer.Argument(help="The board's name: Linf for the default budget, Linf-0.1, L2, clean.")
    ],
    file_format: Annotated[BoardFormat, typer.Option("--format", help="Output format.")] = BoardFormat.TABLE,
    url: Url = "http://127.0.0.1:8000",
    token: ClientToken = None,
) -> None:
    """Print a leaderboard, as a table or in a file format.

    Example: `gklbench board cifar10 Linf --format csv > cifar10-Linf.csv`
    """
    from gkl.client import Client  # noqa: PLC0415

    with Client(url, token) as client:
        if file_format in (BoardFormat.CSV, BoardFormat.JSON):
            for piece in client.export(dataset, threat_model, "csv" if file_format is BoardFormat.CSV else "json"):
                sys.stdout.buffer.write(piece)
            return
        found = client.board(dataset, threat_model)
    # An entry of a board of clean accuracy has no robust one.
    robust = () if threat_model == "clean" else ("robust",)
    rows = []
    for entry in found:
        accuracies = [getattr(entry, name) for name in ("clean", *robust)]
        figures = ["" if each is None else formatting.percent(each.accuracy) for each in accuracies]
        rank = "" if entry.rank is None else str(entry.rank)
        rows.append([rank, visible(entry.name), *figures, visible(entry.architecture)])
    columns = ("rank", "model", "clean", *robust, "architecture")
    if file_format is BoardFormat.TABLE:
        _print_table(columns, rows)
        return
    for row in (columns, ("---",) * len(columns), *rows):
        sys.stdout.write("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n")


@look_cli.command()
def doctor(data_dir: DataDir = None, as_json: AsJson = False, url: Url = "http://127.0.0.1:8000") -> None:
    """Check whether this machine has what the commands need, and say what to do if something is missing.

    Exit status 1 if something exists but does not work.

    Example: `gklbench doctor`
    """
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from app.cli.doctor import examine  # noqa: PLC0415

    findings = []
    marks = {"yes": "[green]yes[/green]", "no": "[red]no[/red]", "without": "[yellow]none[/yellow]"}
    table = Table(box=SIMPLE_HEAD)
    for column in ("", "there", "found", "what to do"):
        table.add_column(column, overflow="fold")
    # The settings are read only if the server or the worker is installed.
    has_settings = is_installed("server") or is_installed("worker")
    for finding in examine(settings_of(data_dir, None) if has_settings else None, url):
        findings.append(finding)
        table.add_row(escape(finding.what), marks[finding.state], escape(finding.found), escape(finding.remedy))
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        console.print(table, highlight=False)
    if any(finding.state == "no" for finding in findings):
        raise typer.Exit(1)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False, highlight=False)
