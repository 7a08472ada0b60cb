"""The commands that only look, against a real service."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import timedelta
from threading import Timer
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner, Result

import gkl
from app import jobs
from app.boards import robustbench
from app.cli.main import cli
from app.core.settings import Settings
from app.db.database import Database
from app.jobs import job_log
from gkl.catalog import ARCHITECTURES
from gkl.client import ClientError
from gkl.errors import FailureCode
from gkl.recipes import RECIPES
from tests.app.boards.test_clean_boards import measure_clean
from tests.app.boards.test_entries import ENTRIES
from tests.app.boards.test_results import train
from tests.app.boards.test_robustbench import LINF, contents
from tests.databases import either_database
from tests.servers import served
from tests.specs import tiny_train_spec


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    with served(settings) as url:
        yield url


@pytest.fixture
def job_id(database: Database) -> int:
    with database.writing() as session:
        return jobs.create(session, tiny_train_spec(name="Ada's")).id


@pytest.fixture
def board(database: Database) -> None:
    files = [
        (f"cifar10/Linf/{name}.json", contents(LINF | {"name": name} | changes)) for name, changes in ENTRIES.items()
    ]
    robustbench.import_files(database, files)


def gklbench(*arguments: str | int, url: str | None = None) -> Result:
    at = [] if url is None else ["--url", url]
    return CliRunner().invoke(cli, [*map(str, arguments), *at], env={"COLUMNS": "200"})


def taken(database: Database) -> Any:
    with database.writing() as session:
        claim = jobs.claim(session, worker="h/1", lease=timedelta(seconds=90))
        assert claim is not None
        return claim


def test_the_version() -> None:
    assert gklbench("--version").output == f"gklbench {gkl.__version__}\n"


@pytest.mark.parametrize(
    ("what", "names"),
    [("datasets", ["digits", "imagenet"]), ("architectures", ["tiny_cnn"]), ("recipes", list(RECIPES))],
)
def test_what_is_known_needs_no_service(what: str, names: list[str]) -> None:
    shown = gklbench("list", what, url="http://127.0.0.1:1")
    assert shown.exit_code == 0
    for name in names:
        assert name in shown.output


def test_recipes_are_listed_in_groups() -> None:
    lines = [line.strip() for line in gklbench("list", "recipes").output.splitlines()]
    headings = [line for line in lines if line.startswith(("train: ", "distill: "))]
    assert headings == sorted(set(headings), key=headings.index)
    assert [heading.partition(":")[0] for heading in headings] == sorted(
        (heading.partition(":")[0] for heading in headings), reverse=True
    )
    assert lines.index("distill: Digits, clean images") < lines.index("distill: CIFAR-10, adversarial")
    told = json.loads(gklbench("list", "recipes", "--json").output)
    assert {each["name"] for each in told} == set(RECIPES)


@either_database
def test_lists_are_the_services_own(url: str, database: Database, board: None) -> None:
    for what, address in (("datasets", "datasets"), ("architectures", "architectures"), ("boards", "leaderboards")):
        told = json.loads(gklbench("list", what, "--json", url=url).output)
        assert told == httpx2.get(f"{url}/api/v1/{address}").json()
    assert len(json.loads(gklbench("list", "architectures", "--json").output)) == len(ARCHITECTURES)
    assert gklbench("list", "jobs", url=url).output == "There are no jobs yet.\n"
    assert gklbench("list", "workers", url=url).output == "There are no workers yet.\n"
    with database.writing() as session:
        for name in ("One", "Two\N{RIGHT-TO-LEFT OVERRIDE}", "Three [red]"):
            jobs.create(session, tiny_train_spec(name=name.replace("\N{RIGHT-TO-LEFT OVERRIDE}", "")))
    told = json.loads(gklbench("list", "jobs", "--json", "--limit", 2, url=url).output)
    assert told == httpx2.get(f"{url}/api/v1/jobs?limit=2").json()["jobs"]
    shown = gklbench("list", "jobs", url=url).output
    assert [word in shown for word in ("One", "Two", "Three [red]", "queued")] == [True] * 4
    assert "cifar10" in gklbench("list", "boards", url=url).output


@either_database
def test_a_jobs_status(url: str, database: Database, job_id: int) -> None:
    shown = gklbench("status", job_id, url=url)
    assert (shown.exit_code, shown.output) == (
        0,
        f"Job {job_id}, train: Ada's\n  queued\n  {url}/jobs/{job_id}\n",
    )
    assert json.loads(gklbench("status", job_id, "--json", url=url).output) == (
        httpx2.get(f"{url}/api/v1/jobs/{job_id}").json()
    )
    claim = taken(database)
    assert "running, attempt 1 on h/1" in gklbench("status", job_id, url=url).output
    with database.writing() as session:
        jobs.fail(session, claim, FailureCode.OUT_OF_MEMORY, "lower batch_size")
    shown = gklbench("status", job_id, url=url)
    assert shown.exit_code == 1
    assert "  out_of_memory: lower batch_size\n" in shown.output


@either_database
def test_a_log_is_followed_to_the_jobs_end(url: str, database: Database, job_id: int) -> None:
    claim = taken(database)
    with database.writing() as session:
        job_log.append(session, job_id, "first\nИмя\n".encode(), max_bytes=1000)
    assert gklbench("logs", job_id, url=url).output == "first\nИмя\n"

    def end() -> None:
        with database.writing() as session:
            job_log.append(session, job_id, b"last\n", max_bytes=1000)
            jobs.fail(session, claim, FailureCode.INTERNAL, "it failed")

    timer = Timer(0.5, end)
    timer.start()
    assert gklbench("logs", job_id, "-f", url=url).output == "first\nИмя\nlast\n"
    timer.join()


@either_database
def test_a_log_tells_the_terminal_nothing(url: str, database: Database, job_id: int) -> None:
    with database.writing() as session:
        job_log.append(session, job_id, b"\x1b]0;title\x07\xff half", max_bytes=1000)
    assert (
        gklbench("logs", job_id, url=url).output
        == "\N{REPLACEMENT CHARACTER}]0;title" + 2 * "\N{REPLACEMENT CHARACTER}" + " half"
    )


@either_database
def test_a_board_in_each_format(url: str, board: None) -> None:
    address = f"{url}/api/v1/leaderboards/cifar10/Linf"
    for file_format in ("csv", "json"):
        written = gklbench("board", "cifar10", "Linf", "--format", file_format, url=url).output
        assert written.splitlines() == httpx2.get(f"{address}/export/{file_format}").text.splitlines()
    rows = list(csv.DictReader(io.StringIO(gklbench("board", "cifar10", "Linf", "--format", "csv", url=url).output)))
    markdown = gklbench("board", "cifar10", "Linf", "--format", "markdown", url=url).output.splitlines()
    assert markdown[0] == "| rank | model | clean | robust | architecture |"
    assert len(markdown) == len(rows) + 2 == 10
    table = gklbench("board", "cifar10", "Linf", url=url).output
    for row in httpx2.get(address).json()["entries"]:
        assert row["name"] in table
        assert any(row["name"] in line for line in markdown)


@either_database
def test_a_board_of_clean_accuracy_has_no_column_of_robust_accuracy(url: str, database: Database) -> None:
    measure_clean(database, train(database, "Plain"), 350)
    markdown = gklbench("board", "digits", "clean", "--format", "markdown", url=url).output.splitlines()
    assert markdown[0] == "| rank | model | clean | architecture |"
    assert markdown[2] == "| 1 | Plain | 97.22 % | SmallCNN |"


@either_database
def test_what_is_not_there_is_one_sentence(url: str) -> None:
    for arguments in (
        ("status", 7),
        ("logs", 7),
        ("board", "cifar10", "L7"),
        ("board", "cifar", "Linf", "--format", "csv"),
    ):
        refused = gklbench(*arguments, url=url).exception
        assert isinstance(refused, ClientError)
        assert "the service answered 404: " in str(refused)
    nobody = gklbench("list", "jobs", url="http://127.0.0.1:1").exception
    assert "no service answers at http://127.0.0.1:1" in str(nobody)
