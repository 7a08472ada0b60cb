"""What works where only some of the packages are installed. All that an installation would be without is refused."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.core.settings import Settings
from app.db.database import Database
from tests.app.boards.test_results import measure, train
from tests.servers import served
from tests.specs import tiny_train_spec

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"app", "gkl", "worker", "tests"}
_RUN = """
import sys
refused, arguments = sys.argv[1].split(","), sys.argv[2:]
# As for a module that is not there: it cannot be imported, and is not found.
sys.modules.update(dict.fromkeys(refused))
sys.argv = ["gklbench", *arguments]
from app.cli.main import main
main()
"""


def distributions(requirements: list[str]) -> set[str]:
    """Those that are installed with these."""
    found: set[tuple[str, str]] = set()
    waiting = [(Requirement(each), "") for each in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        asked = {(name, extra) for extra in ("", *requirement.extras)} - found
        found |= asked
        with suppress(PackageNotFoundError):
            waiting += [(Requirement(each), extra) for _, extra in asked for each in requires(name) or []]
    return {name for name, _ in found}


def requirements(*extras: str) -> list[str]:
    found = list(PROJECT["dependencies"])
    for extra in extras:
        for each in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(each)
            found += requirements(*requirement.extras) if requirement.name == "gklbench" else [each]
    return found


def refused(*extras: str) -> str:
    """The modules of all packages that are here and would not be there."""
    there = distributions(requirements(*extras))
    missing = [
        name
        for name, owners in packages_distributions().items()
        if name not in OURS and not {canonicalize_name(owner) for owner in owners} & there
    ]
    return ",".join(name for name in missing if name.isidentifier())


def run(*arguments: str | Path, extras: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _RUN, refused(*extras), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def done(*arguments: str | Path, extras: tuple[str, ...] = ()) -> str:
    ended = run(*arguments, extras=extras)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    with served(settings) as url:
        yield url


def test_what_an_installation_is_without_is_refused() -> None:
    assert {"sqlalchemy", "fastapi", "celery", "torch", "numpy", "starlette"} <= set(refused().split(","))
    assert not {"pydantic", "httpx2", "typer", "rich"} & set(refused().split(","))
    assert "fastapi" in refused("worker").split(",")
    assert "torch" in refused("server").split(",")


def test_a_client_needs_the_core_alone(tmp_path: Path) -> None:
    assert "submit" in done("--help")
    spec = tmp_path / "digits.json"
    spec.write_text(done("recipe", "digits"))
    assert "digits" in done("list", "recipes")
    assert "start one with" in done("doctor", "--url", "http://127.0.0.1:1")
    unreachable = run("submit", spec, "--url", "http://127.0.0.1:1")
    assert unreachable.returncode == 1
    assert "give its address with --url" in unreachable.stderr


@pytest.mark.long
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_client_of_the_core_alone_works_with_a_service(url: str, database: Database, tmp_path: Path) -> None:
    measure(database, train(database, "Measured"), robust=200)
    spec = tmp_path / "spec.json"
    spec.write_text(tiny_train_spec(name="Sent").model_dump_json())
    assert "is queued" in done("submit", spec, "--url", url)
    assert "Sent" in done("list", "jobs", "--url", url)
    assert "Sent" in done("status", "3", "--url", url)
    assert "Measured" in done("board", "digits", "Linf", "--url", url)
    assert "cancelled" in done("cancel", "3", "--url", url)
    assert done("logs", "3", "--url", url) == ""


@pytest.mark.parametrize(
    ("command", "extras"),
    [
        (["up"], "server,worker,embedded"),
        (["demo"], "server,worker,embedded"),
        (["serve"], "server"),
        (["worker"], "worker"),
        (["migrate"], "server"),
        (["token", "list"], "server"),
        (["train", "spec.json"], "worker"),
        (["verify", "certificate.safetensors"], "worker"),
        (["check-settings"], "server"),
    ],
)
def test_a_command_says_what_it_needs(command: list[str], extras: str) -> None:
    ended = run(*command)
    assert ended.returncode == 1
    assert ended.stderr.startswith("gklbench: this needs ")
    assert ended.stderr.endswith(f": pip install 'gklbench[{extras}]'\n")
    assert len(ended.stderr.splitlines()) == 1
    assert run(*command, "--help").returncode == 0


@pytest.mark.parametrize(
    ("extras", "modules"),
    [
        (
            ("server",),
            ["app.main", "app.maintenance.relay", "app.cli.process", "app.maintenance.storage", "app.db.migrations"],
        ),
        (
            ("worker",),
            [
                "worker.celery_app",
                "worker.supervisor",
                "worker.runner",
                "app.cli.process",
                "app.db.migrations",
                "app.cli.doctor",
            ],
        ),
        (
            ("worker",),
            ["gkl.evaluation", "gkl.training", "gkl.library.evaluation", "app.cli.follow", "app.cli.process"],
        ),
    ],
)
def test_an_extra_brings_what_its_processes_import(extras: tuple[str, ...], modules: list[str]) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
import importlib
for name in {modules!r}: importlib.import_module(name)
"""
    command = [sys.executable, "-c", code, refused(*extras)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.long
def test_commands_of_each_image_run_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GKLBENCH_DATA_DIR", str(tmp_path))
    assert "settings are valid" in done("check-settings", extras=("server",))
    assert "Folder" in done("storage", extras=("server",))
    assert "Name" in done("token", "list", extras=("server",))
    assert "settings are valid" in done("check-settings", extras=("worker",))
    assert "no worker of" in run("health", "worker", extras=("worker",)).stderr


# `docs` makes pages; nothing that runs needs it.
@pytest.mark.parametrize("extra", [n for n in PROJECT["optional-dependencies"] if n not in ("all", "dev", "docs")])
def test_all_extras_are_among_all(extra: str) -> None:
    all_of_them = set(requirements("all"))
    assert set(requirements(extra)) <= all_of_them
    assert all_of_them <= set(requirements("dev"))


def test_help_loads_nothing_that_a_command_may_need() -> None:
    """Each of these takes a tenth of a second and more, before the first word."""
    code = """
import sys
sys.argv = ["gklbench", "--help"]
from app.cli import main as cli
try:
    cli.main()
except SystemExit:
    pass
heavy = {"sqlalchemy", "fastapi", "starlette", "httpx2", "alembic", "pydantic", "celery", "redis", "structlog", "torch"}
print(*heavy & sys.modules.keys(), file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage: gklbench" in ended.stdout
    assert ended.stderr.split() == []
