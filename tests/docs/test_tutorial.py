"""The pages' shell blocks, run as their reader would: what is shown is what comes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster import free_port
from tests.docs.shell_blocks import ROOT, environment, prepare, run_page, service

DOCS = ROOT / "docs"

needs_tools = pytest.mark.skipif(shutil.which("curl") is None, reason="the pages' commands need curl")


def gklbench(directory: Path, *arguments: str) -> str:
    program = directory / ".venv/bin/gklbench"
    done = subprocess.run(
        [program, *arguments], cwd=directory, env=environment(), capture_output=True, text=True, check=True
    )
    return done.stdout


@needs_tools
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_tutorial(tmp_path: Path) -> None:
    port = free_port()
    with service(tmp_path, port):
        run_page(DOCS / "tutorial.md", tmp_path, port)


@needs_tools
@pytest.mark.long
@pytest.mark.timeout(900)
def test_api(tmp_path: Path) -> None:
    port = free_port()
    prepare(tmp_path, f"http://127.0.0.1:{port}")
    # What the page does before it starts the service.
    options = {"Ada": ["--scopes", "submit", "--max-queued", "2"], "Owner": ["--scopes", "admin"]}
    for name, asked in options.items():
        token = gklbench(tmp_path, "token", "create", "--name", name, *asked)
        (tmp_path / f"{name.lower()}.token").write_text(token)
    with service(tmp_path, port, GKLBENCH_ACCESS="tokens"):
        run_page(DOCS / "api.md", tmp_path, port)


@needs_tools
@pytest.mark.long
@pytest.mark.timeout(900)
def test_evaluate_a_checkpoint(tmp_path: Path) -> None:
    port = free_port()
    make_checkpoint(tmp_path / "model.pt")
    with service(tmp_path, port):
        run_page(DOCS / "evaluate-a-checkpoint.md", tmp_path, port)


@needs_tools
@pytest.mark.long
@pytest.mark.timeout(900)
def test_distill(tmp_path: Path) -> None:
    port = free_port()
    with service(tmp_path, port):
        run_page(DOCS / "distill.md", tmp_path, port)


@needs_tools
def test_train_with_gkl_on_cifar(tmp_path: Path) -> None:
    run_page(DOCS / "train-with-gkl-on-cifar.md", tmp_path, free_port())


def make_checkpoint(path: Path) -> None:
    """A state dict of torch.save, of a network that has seen the digits a few times."""
    import torch
    from safetensors.torch import load_file

    from gkl.run_context import RunContext
    from gkl.spec import ThreatModel, TrainSpec
    from gkl.training import train

    spec = TrainSpec(
        name="somebody's",
        dataset="digits",
        architecture="tiny_cnn",
        threat_model=ThreatModel(epsilon=0.2),
        epochs=2,
    )
    outcome = train(spec, RunContext(directory=path.parent / "theirs", datasets_dir=path.parent, device="cpu"))
    torch.save({"state_dict": load_file(path.parent / "theirs" / outcome.weights)}, path)
