"""The rooms: who may import whom. Read from the source, so that an import inside a function counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The command line may reach across rooms.
COMMAND_LINE = {"app.cli.doctor", "app.cli.main", "app.cli.process_cli"}
# Those of its modules that ask a service are its clients, and no part of one.
CLIENTS = {"app.cli.command_errors", "app.cli.follow", "app.cli.look_cli"}
APP_MAY_IMPORT_OF_GKL = {
    "gkl",
    "gkl.addresses",
    "gkl.answers",
    "gkl.spec",
    "gkl.outcome",
    "gkl.outcome.flags",
    "gkl.errors",
    "gkl.field_errors",
    "gkl.statistics.paired",
    "gkl.statistics.unpaired",
    "gkl.catalog",
    "gkl.outcome.corruption_error",
    "gkl.recipes",
    "gkl.files",
    "gkl.formats.weights_format",
    "gkl.formats.weights_contents",
    "gkl.catalog.network_tensors",
    "gkl.formats.safetensors_header",
    "gkl.catalog.zoo",
}
WORKER_MAY_IMPORT_OF_APP = {
    "app",
    *(
        f"app.{name}"
        for name in ("settings", "database", "tables", "jobs", "job_files", "artifacts", "leaderboard", "job_log")
    ),
    *(
        f"app.{name}"
        for name in (
            *("outbox", "broker", "errors", "workers", "formatting", "external", "reports", "certificates"),
            *("transfers", "robust_points"),
        )
    ),
}
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
    "gkl.formats.conversion",
    "worker.runner",
    "app.main",
    "worker.tasks",
]


def modules(room: str) -> dict[str, Path]:
    found = {}
    for path in (ROOT / room).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports: `from app import jobs` is app.jobs."""
    known = {name for room in ("app", "worker", "gkl") for name in modules(room)}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports from the top"
            assert node.module is not None
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (members & known) or {node.module}
    return found


def of(room: str, names: set[str]) -> set[str]:
    return {name for name in names if name == room or name.startswith(room + ".")}


@pytest.mark.parametrize(("name", "path"), sorted(modules("gkl").items()))
def test_the_engine_knows_no_service(name: str, path: Path) -> None:
    for forbidden in ("app", "worker", "fastapi", "celery", "sqlalchemy", "starlette", "redis", "kombu"):
        assert not of(forbidden, imports(path)), f"{name} imports {forbidden}"


@pytest.mark.parametrize(("name", "path"), sorted(modules("app").items()))
def test_the_service_knows_only_the_engines_words(name: str, path: Path) -> None:
    if name in COMMAND_LINE:
        return
    assert of("gkl", imports(path)) <= APP_MAY_IMPORT_OF_GKL | ({"gkl.client"} if name in CLIENTS else set())
    assert not of("worker", imports(path))
    assert not of("torch", imports(path))


@pytest.mark.parametrize(("name", "path"), sorted(modules("worker").items()))
def test_the_worker_knows_no_page_and_no_route(name: str, path: Path) -> None:
    assert of("app", imports(path)) <= WORKER_MAY_IMPORT_OF_APP


@pytest.mark.parametrize(("name", "path"), sorted(modules("gkl").items()))
def test_only_the_client_speaks_http(name: str, path: Path) -> None:
    if not of("gkl.client", {name}) and name != "gkl.library.publishing":
        assert not {name for module in ("httpx2", "gkl.client") for name in of(module, imports(path))}


def test_the_runner_knows_only_the_engine() -> None:
    found = imports(ROOT / "worker" / "runner.py")
    assert not of("app", found)
    assert not of("worker", found)
    assert not of("celery", found)


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
from gkl.spec import EvaluateSpec
from gkl.training import train
from tests.specs import NO_FILES, tiny_train_spec

directory, spec = Path(sys.argv[1]), tiny_train_spec(epochs=1)
train(spec, directory, datasets_dir=NO_FILES, report=lambda _: None)
weights = directory / "weights.safetensors"
kept = spec.model_dump(include={"name", "dataset", "architecture", "evaluation"})
measured = EvaluateSpec(**kept, weights=sha256_of(weights))
evaluate(measured, weights, directory / "evaluation", datasets_dir=NO_FILES, report=lambda _: None)
needless = {"torch._dynamo", "torch._inductor", "sympy", "sklearn", "scipy", "pandas", "torchvision", "robustbench"}
print(*needless & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.system
def test_importing_everything_reads_no_setting_and_touches_no_gpu() -> None:
    """With an environment in which each of these would fail."""
    names = [n for room in ("app", "worker", "gkl") for n in modules(room) if n != "app.db.migrations.env"]
    names = [n for n in names if not n.startswith("app.db.migrations.versions")]
    code = f"import importlib, torch\nfor n in {names!r}: importlib.import_module(n)\n"
    code += "assert not torch.cuda.is_initialized()"
    environment = {"GKLBENCH_PORT": "no number", "GKLBENCH_DATABASE_URL": "no address", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
