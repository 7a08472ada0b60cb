"""The rooms and who may import whom. Read from the source, so that an import inside a function counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# In order: a module imports from its own room and from rooms before it. A line is a floor of the house.
FLOORS = (
    ("gkl.errors", "gkl.addresses", "gkl.files", "gkl.run_log", "gkl.device"),
    ("gkl.formats", "gkl.statistics", "gkl.catalog", "gkl.outcome", "gkl.spec", "gkl.run_context"),
    ("gkl.answers", "gkl.field_errors", "gkl.recipes", "gkl.provenance", "gkl.progress_bar", "gkl.conversion"),
    ("gkl.losses", "gkl.data", "gkl.models", "gkl.attacks", "gkl.evaluation", "gkl.training"),
    ("gkl.client", "gkl.library", "gkl"),
    ("app.core", "app.db", "app.store", "app.accounts", "app.boards", "app.jobs"),
    ("app.http", "app.weights", "app.evidence", "app.maintenance"),
    ("app.routes", "app.web", "app.main", "app"),
    ("worker",),
    ("app.cli",),
)
ROOMS = [room for floor in FLOORS for room in floor]

# Of the engine the service uses what needs no torch.
OF_THE_ENGINE_FOR_APP = {
    *("gkl", "gkl.errors", "gkl.addresses", "gkl.files", "gkl.statistics", "gkl.catalog", "gkl.outcome", "gkl.spec"),
    *("gkl.answers", "gkl.field_errors", "gkl.recipes", "gkl.formats"),
}
# A worker handles jobs, not requests.
OF_THE_SERVICE_FOR_WORKERS = {"app.core", "app.db", "app.store", "app.boards", "app.jobs", "app.evidence"}
# Those commands that ask a service are its clients, and no part of one.
CLIENTS = {"app.cli.command_errors", "app.cli.follow", "app.cli.look_cli"}
SERVERS = ("fastapi", "celery", "sqlalchemy", "starlette", "redis", "kombu")

TORCH_FREE = [
    "gkl",
    "gkl.addresses",
    "gkl.answers",
    "gkl.client",
    "gkl.spec",
    "gkl.outcome",
    "gkl.outcome.flags",
    "gkl.errors",
    "gkl.field_errors",
    "gkl.statistics.paired",
    "gkl.statistics.unpaired",
    "gkl.catalog",
    "gkl.outcome.corruption_error",
    "gkl.catalog.parameters",
    "gkl.catalog.preprocessing",
    "gkl.recipes",
    "gkl.files",
    "gkl.formats.weights_format",
    "gkl.formats.safetensors_header",
    "gkl.formats.torch_archive",
    "gkl.formats.layouts",
    "gkl.formats.weights_contents",
    "gkl.catalog.network_tensors",
    "gkl.catalog.on_disk",
    "gkl.formats.confinement",
    "gkl.run_log",
    "gkl.run_context",
    "gkl.conversion",
    "worker.runner",
    "app.main",
    "worker.tasks",
]


@cache
def modules() -> dict[str, Path]:
    found = {}
    for top in ("gkl", "app", "worker"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _statements(tree: ast.AST, *, with_types: bool) -> Iterator[ast.AST]:
    """All of them, or all but those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if not with_types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _statements(node, with_types=with_types)


@cache
def imports(name: str, *, with_types: bool = True) -> frozenset[str]:
    """Full names of the modules that a module imports: `from app.jobs import job_files` is app.jobs.job_files."""
    found = set()
    for node in _statements(ast.parse(modules()[name].read_text()), with_types=with_types):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: write imports from the top"
            assert node.module is not None
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (members & modules().keys()) or {node.module}
    return frozenset(found)


def room_of(name: str) -> str | None:
    """The room that a module is in; None for a library's module."""
    parts = name.split(".")
    return next((room for n in (2, 1) if (room := ".".join(parts[:n])) in ROOMS), None)


def rooms_of(name: str) -> dict[str, set[str]]:
    """Room -> the modules of it that a module imports."""
    found: dict[str, set[str]] = {}
    for each in imports(name):
        if (room := room_of(each)) is not None:
            found.setdefault(room, set()).add(each)
    return found


def of(room: str, names: frozenset[str]) -> set[str]:
    return {name for name in names if name == room or name.startswith(room + ".")}


def names_of(room: str) -> list[str]:
    return sorted(of(room, frozenset(modules())))


def test_every_module_is_in_a_room() -> None:
    # A folder that is new is none of a top-level package by chance.
    assert {name for name in modules() if room_of(name) in ("gkl", "app") and "." in name} == set()


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_import_leads_upwards(name: str) -> None:
    floor = ROOMS.index(room_of(name) or "")
    # `gkl` alone is its version, which anything may say.
    above = {room: found for room, found in rooms_of(name).items() if ROOMS.index(room) > floor and room != "gkl"}
    assert not above


def test_no_modules_import_each_other_in_a_circle() -> None:
    # The face of the engine loads what it shows when it is asked for.
    graph = {name: imports(name, with_types=False) & modules().keys() - {"gkl"} for name in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("name", names_of("gkl"))
def test_the_engine_knows_no_server(name: str) -> None:
    assert {library for library in SERVERS if of(library, imports(name))} == set()
    if room_of(name) != "gkl.client":
        assert not of("httpx2", imports(name)), "only the client speaks HTTP"


@pytest.mark.parametrize("name", names_of("app"))
def test_the_service_knows_only_the_engines_words(name: str) -> None:
    if room_of(name) == "app.cli" and name not in CLIENTS:
        return
    allowed = OF_THE_ENGINE_FOR_APP | ({"gkl.client"} if name in CLIENTS else set())
    assert {room for room in rooms_of(name) if room.startswith("gkl")} <= allowed
    assert not of("torch", imports(name))


@pytest.mark.parametrize("name", names_of("worker"))
def test_the_worker_knows_no_page_and_no_route(name: str) -> None:
    assert {room for room in rooms_of(name) if room.startswith("app")} <= OF_THE_SERVICE_FOR_WORKERS


def test_the_runner_knows_only_the_engine() -> None:
    assert {room for room in rooms_of("worker.runner") if not room.startswith("gkl")} == set()
    assert not of("celery", imports("worker.runner"))


@pytest.fixture(scope="module")
def without_torch() -> list[str]:
    """Those whose import leaves torch alone: each in a fork of one interpreter, so that none profits from another."""
    code = """
import importlib, os, sys
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        os._exit("torch" in sys.modules)
    if os.waitpid(child, 0)[1] == 0:
        print(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *TORCH_FREE], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return done.stdout.split()


@pytest.mark.parametrize("module", ["gkl", "gkl.statistics.paired"])
def test_what_is_imported_everywhere_brings_nothing_large(module: str) -> None:
    code = f"import {module}, sys; print(*{{'numpy', 'scipy', 'torch', 'pydantic'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_it_leaves_torch_alone(module: str, without_torch: list[str]) -> None:
    assert module in without_torch


def test_a_small_run_loads_no_library_that_it_does_not_need(tmp_path: Path) -> None:
    """Each of these would have it start a second or two later."""
    code = """
import sys
from pathlib import Path
from gkl.evaluation import evaluate
from gkl.files import sha256_of
from gkl.run_context import RunContext
from gkl.spec import EvaluateSpec
from gkl.training import train
from tests.specs import NO_FILES, tiny_train_spec

directory, spec = Path(sys.argv[1]), tiny_train_spec(epochs=1)
train(spec, RunContext(directory=directory, datasets_dir=NO_FILES))
weights = directory / "weights.safetensors"
kept = spec.model_dump(include={"name", "dataset", "architecture", "evaluation"})
measured = EvaluateSpec(**kept, weights=sha256_of(weights))
evaluate(measured, weights, RunContext(directory=directory / "evaluation", datasets_dir=NO_FILES))
needless = {"torch._dynamo", "torch._inductor", "sympy", "sklearn", "scipy", "pandas", "torchvision", "robustbench"}
print(*needless & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.system
def test_importing_everything_reads_no_setting_and_touches_no_gpu() -> None:
    """With an environment in which each of these would fail."""
    names = [n for n in modules() if not n.startswith(("app.db.migrations.env", "app.db.migrations.versions"))]
    names.remove("app.cli.__main__")
    code = f"import importlib, torch\nfor n in {names!r}: importlib.import_module(n)\n"
    code += "assert not torch.cuda.is_initialized()"
    environment = {"GKLBENCH_PORT": "no number", "GKLBENCH_DATABASE_URL": "no address", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
