"""The notebook, run from its beginning to its end, shows what is stored in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.docs.shell_blocks import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "first-verdict.ipynb"


def cells(path: Path) -> list[Any]:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: Any) -> str:
    """What a cell says in text, wherever it is told."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def sentence(cell: Any) -> str:
    """Without numbers, in which processors may differ; of a table the names of its columns."""
    text = shown(cell)
    if "text/html" in str(cell.outputs) and text.startswith(" "):
        text = text.partition("\n")[0]
    return " ".join(re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", text).split())


@pytest.mark.long
def test_it_runs_and_shows_what_is_stored(tmp_path: Path) -> None:
    target = tmp_path / "run.ipynb"
    done = subprocess.run([sys.executable, ROOT / "docs" / "notebook.py", target], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    before, now = cells(NOTEBOOK), cells(target)
    assert [cell.source for cell in now] == [cell.source for cell in before]
    assert [sentence(cell) for cell in now] == [sentence(cell) for cell in before]
    exact = [position for position, cell in enumerate(before) if "exact" in cell.metadata.get("tags", [])]
    assert exact
    assert [shown(now[position]) for position in exact] == [shown(before[position]) for position in exact]
    for position, cell in enumerate(now):
        kinds = [sorted(output.get("data", {})) for output in cell.outputs]
        assert kinds == [sorted(output.get("data", {})) for output in before[position].outputs]


def test_what_is_stored_is_small_and_of_no_machine() -> None:
    assert NOTEBOOK.stat().st_size < 100_000
    for cell in cells(NOTEBOOK):
        assert cell.execution_count
        for output in cell.outputs:
            assert output.get("name") != "stderr"
        assert not re.search(r"(?<![\w.])/(\w+/)+\w+\.py|/(home|root|tmp|Users)/", shown(cell))
    text = NOTEBOOK.read_text(encoding="utf-8")
    for shows in ("Verdict: robust", "paired interval", "image/png", "adversarial_prediction"):
        assert shows in text
